"""Where scenes come from: ``builtin:NAME``, ``.dpq`` artifacts and the splat files of others."""

from __future__ import annotations

from pathlib import Path

from dpq_core.artifact import ArtifactFile
from dpq_core.errors import SourceError
from dpq_core.plugin.builtin import BUILTIN_SCHEME, find_local
from dpq_gaussian.formats import NATIVE, Loaded, convert, read_scene
from dpq_gaussian.scene import Scene

BUILTIN = Path(__file__).parent / "builtin"
"""Scenes that ship, each a folder with this file in it:"""

BUILTIN_FILE = "scene.ply"


def load_scene(source: str, *, axes: str | None = None) -> Scene:
    """The Gaussians of any source, in the conventions of ``Scene``.

    Args:
        source: ``builtin:NAME``, a .dpq file, or any file that ``read_scene`` knows.
        axes: the axes of the source, e.g. ``rdf``; None takes its format's own.

    Raises:
        SourceError: there is no such source, or it is damaged or no splat scene.
        ArtifactError: a .dpq file is damaged.
    """
    return load(source, axes=axes).scene


def load(source: str, *, axes: str | None = None) -> Loaded:
    """``load_scene``, with what else the file said."""
    path = locate(source)
    if path.suffix == ArtifactFile.SUFFIX:
        from dpq_gaussian.codec import SceneFile

        file = SceneFile(path)
        scene = convert(file.whole(), axes or NATIVE, NATIVE)
        mip = file.parameters.antialiased
        return Loaded(scene=scene, format="dpq", coordinates=axes or NATIVE, antialiased=mip)
    return read_scene(path, axes=axes)


def locate(source: str) -> Path:
    """The file that a source names.

    Raises:
        SourceError: there is none.
    """
    place = find_local(source, BUILTIN, BUILTIN_FILE)
    if place is None:
        raise SourceError(f"{source}: no such file")
    return place / BUILTIN_FILE if source.startswith(BUILTIN_SCHEME) else place
