"""Where a scene is looked at for an evaluation, and what there is to see: photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpq_core.errors import SourceError
from dpq_core.plugin.builtin import BUILTIN_SCHEME
from dpq_gaussian.cameras import Camera, held_out, read_cameras
from dpq_gaussian.cameras.json_files import find_image
from dpq_gaussian.cameras.rig import rig
from dpq_gaussian.cameras.split import HOLD
from dpq_gaussian.evaluate_options import RIG_VIEWS, EvaluateOptions
from dpq_gaussian.loading import locate
from dpq_gaussian.scene import Scene

_CAMERA_FILE = "cameras.json"
_SHIPPED = "views"
"""Of a builtin scene, beside its Gaussians: cameras, and the folder of their photographs."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The views of an evaluation.

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
        """``395x296``, or the range of widths and heights where they differ."""
        sizes = [(c.width, c.height) for c in self.cameras]
        low, high = min(sizes), max(sizes)
        shown = f"{low[0]}x{low[1]}"
        return shown if low == high else f"{shown} to {high[0]}x{high[1]}"


def find_views(origin: str, options: EvaluateOptions, scene: Scene) -> Views:
    """The cameras that the user gave, those of a builtin scene, or the rig.

    Args:
        origin: the uncompressed scene as the user named it; a builtin one has cameras of its own.
        options: which cameras, how many and how large.
        scene: what a rig is built around: the original where there is one.

    Raises:
        SourceError: cameras or photographs are missing, unreadable or do not fit each other.
    """
    if options.cameras:
        return _given(Path(options.cameras), options)
    if origin.startswith(BUILTIN_SCHEME):
        shipped = _shipped(locate(origin).parent)
        if shipped:
            return _fitted_views(shipped, f"held-out views of {origin}", origin, options)
    cameras = rig(scene, size=options.size, views=options.views or RIG_VIEWS, up=options.up)
    return Views(
        cameras=cameras,
        photographed=False,
        name=f"{len(cameras)} views of the rig",
        notes=("no photographs: quality is fidelity to the original",),
    )


def photograph(camera: Camera, background: Sequence[float]) -> Tensor:
    """The photograph of a view at the camera's size, float32 ``[H, W, 3]`` in [0, 1].

    Smaller pictures are made by averaging (a box filter); transparent ones lie on the background.

    Raises:
        SourceError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(_path(camera)) as file:
            whole = file.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(camera, error) from None
    if whole.size != (camera.width, camera.height):
        whole = whole.resize((camera.width, camera.height), Image.Resampling.BOX)
    levels = torch.from_numpy(np.array(whole, np.float32)) / 255  # [H, W, 4]
    colour, alpha = levels[..., :3], levels[..., 3:]
    return colour * alpha + torch.tensor(tuple(background)) * (1 - alpha)


def _shipped(folder: Path) -> tuple[Camera, ...]:
    """The cameras of a builtin scene, all of them held out from its training."""
    if not (folder / _CAMERA_FILE).is_file():
        return ()
    cameras = read_cameras(folder / _CAMERA_FILE)
    return tuple(replace(c, image=find_image(folder / _SHIPPED, c.name)) for c in cameras)


def _given(source: Path, options: EvaluateOptions) -> Views:
    """Cameras of files."""
    everything = read_cameras(source)
    if options.all_views:
        return _fitted_views(everything, f"views of {source.name}", str(source), options)
    _, chosen = held_out(everything)
    name = f"held-out views (every {HOLD}th of {len(everything)}) of {source.name}"
    return _fitted_views(chosen, name, str(source), options)


def _fitted_views(
    chosen: tuple[Camera, ...], name: str, source: str, options: EvaluateOptions
) -> Views:
    """As many of the cameras as asked for, fitted to their photographs."""
    count = len(chosen)
    name = f"{count} {name}"
    if 0 < options.views < count:
        chosen = tuple(chosen[at * count // options.views] for at in range(options.views))
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
    cameras = tuple(fitted(camera, options.downscale) for camera in chosen)
    return Views(cameras=cameras, photographed=photographed, name=name, notes=tuple(notes))


def fitted(camera: Camera, downscale: float) -> Camera:
    """The camera with the size of its photograph, if it has one, made smaller as asked.

    Raises:
        SourceError: the photograph cannot be read, or has other proportions.
    """
    if camera.image is None:
        return camera.scaled(1 / downscale)
    from PIL import Image

    try:
        with Image.open(_path(camera)) as file:
            width, height = file.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(camera, error) from None
    # A reduced photograph of the same view may be rounded by a pixel, not more.
    if abs(width * camera.height - height * camera.width) > max(camera.width, camera.height):
        raise SourceError(
            f"{camera.image}: {width} x {height} pixels, but its camera has {camera.width} x "
            f"{camera.height}; is it cropped, turned, or that of another view?"
        )
    return camera.resized(width, height).scaled(1 / downscale)


def _path(camera: Camera) -> Path:
    if camera.image is None:
        raise SourceError(f"view {camera.name!r} has no photograph")
    return camera.image


def _unreadable(camera: Camera, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())[:200]
    return SourceError(f"{camera.image}: not a readable photograph ({reason})")
