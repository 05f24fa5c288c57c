"""The views of an evaluation: given, shipped with a builtin scene, or the rig."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dpq_core.errors import SourceError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_gaussian.cameras import Camera, held_out, read_cameras
from dpq_gaussian.cameras.json_files import find_image
from dpq_gaussian.cameras.photographs import sized_like_photograph
from dpq_gaussian.cameras.reading import HOLD
from dpq_gaussian.formats.loaded import Origin
from dpq_gaussian.options import RIG_VIEWS, EvaluateOptions
from dpq_gaussian.rendering.viewpoints import rig
from dpq_gaussian.scene import Scene
from dpq_gaussian.scene.sources import locate

_CAMERA_FILE = "cameras.json"
_SHIPPED = "views"
"""Of a builtin scene, beside its Gaussians: cameras, and the folder of their photographs."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The cameras of an evaluation, and whether they have photographs.

    Attributes:
        cameras: with the size of the pictures to draw.
        photographed: they have photographs (``Camera.image``); all of them or none.
        name: what they are, e.g. ``13 held-out views (every 8th of 97) of cameras.json``.
        notes: one line each, for the user.
    """

    cameras: tuple[Camera, ...]
    photographed: bool
    name: str
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> str:
        """The size of the pictures as text, such as ``395x296``, or its range."""
        sizes = [(c.width, c.height) for c in self.cameras]
        low, high = min(sizes), max(sizes)
        shown = f"{low[0]}x{low[1]}"
        return shown if low == high else f"{shown} to {high[0]}x{high[1]}"


def find_views(original: str, options: EvaluateOptions, scene: Scene, origin: Origin) -> Views:
    """Chooses the views: the user's cameras, those of a builtin scene, or the rig.

    Args:
        original: the uncompressed scene as the user named it; a builtin one has cameras of its own.
        options: which cameras, how many and how large.
        scene: what a rig is built around: the original where there is one.
        origin: the place in the world that its positions are relative to.

    Raises:
        SourceError: cameras or photographs are missing, unreadable or do not fit each other.
    """
    if options.cameras:
        return _given(Path(options.cameras), options, origin)
    if original.startswith(BUILTIN_SCHEME):
        shipped = _shipped(locate(original).parent)
        if shipped:
            return _fitted_views(shipped, f"held-out views of {original}", original, options)
    cameras = rig(scene, size=options.pixels, views=options.limit or RIG_VIEWS, up=options.up)
    return Views(
        cameras=cameras,
        photographed=False,
        name=f"{len(cameras)} views of the rig",
        notes=("no photographs: quality is fidelity to the original",),
    )


def _shipped(folder: Path) -> tuple[Camera, ...]:
    """The cameras of a builtin scene, all of them held out from its training."""
    if not (folder / _CAMERA_FILE).is_file():
        return ()
    cameras = read_cameras(folder / _CAMERA_FILE)
    return tuple(replace(c, image=find_image(folder / _SHIPPED, c.name)) for c in cameras)


def _given(source: Path, options: EvaluateOptions, origin: Origin) -> Views:
    """The views of the user's camera files, held out ones unless all are asked for."""
    everything = read_cameras(source, origin=origin)
    if options.all_cameras:
        return _fitted_views(everything, f"views of {source.name}", str(source), options)
    _, chosen = held_out(everything)
    name = f"held-out views (every {HOLD}th of {len(everything)}) of {source.name}"
    return _fitted_views(chosen, name, str(source), options)


def _fitted_views(
    chosen: tuple[Camera, ...], name: str, source: str, options: EvaluateOptions
) -> Views:
    """As many of the cameras as asked for, resized like their photographs."""
    count = len(chosen)
    name = f"{count} {name}"
    if 0 < options.limit < count:
        chosen = tuple(chosen[at * count // options.limit] for at in range(options.limit))
        name = f"{len(chosen)} of the {name}"
    missing = [camera.name for camera in chosen if camera.image is None]
    photographed = len(missing) < len(chosen)
    notes = []
    if photographed and missing:
        raise SourceError(
            f"{source}: no photograph of view {missing[0]!r} and {len(missing) - 1} more of "
            f"{len(chosen)}; they belong beside the cameras or in a folder `images` there"
        )
    if missing:
        notes.append(
            f"no photographs beside {source}: only fidelity to the original can be measured"
        )
    cameras = tuple(sized_like_photograph(camera, options.downscale) for camera in chosen)
    return Views(cameras=cameras, photographed=photographed, name=name, notes=tuple(notes))
