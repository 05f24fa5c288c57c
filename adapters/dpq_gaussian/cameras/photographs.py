"""Photographs of cameras, and cameras resized to match their photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpq_core.errors import SourceError
from dpq_gaussian.cameras.camera import Camera


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


def sized_like_photograph(camera: Camera, downscale: float) -> Camera:
    """Resizes a camera to its photograph, if it has one, divided by ``downscale``.

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
