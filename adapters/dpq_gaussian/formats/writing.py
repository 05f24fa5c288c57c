"""Writing of splat files, which appear complete or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpq_core.artifact.files import replacing
from dpq_core.errors import REPLACE, SourceError, SpecError
from dpq_core.nearest import nearest
from dpq_gaussian.formats import ply, splat, spz
from dpq_gaussian.formats.coordinates import NATIVE, convert, parse_axes
from dpq_gaussian.formats.spz_planes import FRACTION
from dpq_gaussian.formats.stream import SceneStream
from dpq_gaussian.scene import Scene, check_values

WRITABLE = ("ply", "splat", "spz")
"""Formats of ``write_scene``."""

AXES = {"ply": NATIVE, "splat": NATIVE, "spz": spz.COORDINATES}
"""The axes in which a format is by its specification, or by custom."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A written file, with its size and notes.

    Attributes:
        path: where it is.
        nbytes: its size.
        notes: one line each, for the user: what the format does not keep.
    """

    path: Path
    nbytes: int
    notes: tuple[str, ...]


def write_scene(
    scene: Scene | SceneStream,
    path: str | Path,
    to: str,
    *,
    axes: str | None = None,
    antialiased: bool = False,
    overwrite: bool = False,
) -> Written:
    """Writes a scene; .spz takes 76 bytes of memory per Gaussian beyond it, others little.

    Args:
        scene: whole, or a stream of chunks (then its values are checked as they pass).
        path: the new file; its folder must exist.
        to: ``ply`` (Inria's layout, exact), ``splat`` or ``spz`` (version 3).
        axes: the axes of the file; None takes the format's: RUB for spz, RDF for the others.
        antialiased: mark the scene as trained for anti-aliased rendering, where a format can.
        overwrite: replace a file there.

    Raises:
        SourceError: ``path`` exists, a value is NaN, infinite or a quaternion without length, or
            the scene does not fit in the format. Nothing is written then.
        SpecError: there is no such format, or no such axes.
        ArtifactError: the operating system refused, e.g. the disk is full; nothing is left behind.
    """
    path = Path(path)
    if to not in WRITABLE:
        hint = nearest(to, WRITABLE, most=1)
        raise SpecError(f"cannot write {to!r}; {hint}formats: {', '.join(WRITABLE)}")
    target = AXES[to] if axes is None else parse_axes(axes)
    if isinstance(scene, Scene):
        check_values(scene, str(path))
        stream = SceneStream.of(scene)
    else:
        stream = scene.checked(str(path))
    chunks = (convert(chunk, NATIVE, target) for chunk in stream.chunks)
    stream = SceneStream(count=stream.count, sh_degree=stream.sh_degree, chunks=chunks)
    notes = _notes(stream.sh_degree, to, target, antialiased)
    _check_place(path, overwrite)
    with replacing(path) as partial, partial.open("wb") as file:
        if to == "ply":
            ply.write(file, stream, antialiased)
        elif to == "splat":
            splat.write(file, stream)
        elif (fraction := spz.write(file, stream, antialiased)) < FRACTION:
            notes += (f"far positions: {fraction} fractional bits instead of {FRACTION}",)
    return Written(path=path, nbytes=path.stat().st_size, notes=notes)


def _notes(degree: int, to: str, target: str, antialiased: bool) -> tuple[str, ...]:
    notes = []
    if to == "splat" and degree:
        notes.append(
            f".splat has no view-dependent colour: spherical harmonics of degree {degree} dropped"
        )
    if to == "splat" and antialiased:
        notes.append(".splat cannot say that the scene is for anti-aliased rendering")
    if to == "spz":
        notes.append("spz rounds colour, scale, opacity to 8 bits and harmonics to 4 or 5")
    if target != NATIVE:
        notes.append(
            f"written in {target.upper()} axes; a viewer that takes it to be like a .ply shows it "
            "upside down: write rdf for that one"
        )
    return tuple(notes)


def _check_place(path: Path, overwrite: bool) -> None:
    """Refuse a place where no new file can be written."""
    if path.is_dir():
        raise SourceError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise SourceError(f"{path}: exists already", REPLACE)
    if not path.parent.is_dir():
        raise SourceError(f"{path}: the folder {path.parent} does not exist")
