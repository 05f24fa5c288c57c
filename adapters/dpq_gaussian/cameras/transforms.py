"""``transforms.json`` of nerfstudio, instant-ngp and the Blender scenes of NeRF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpq_core.errors import SourceError
from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.cameras.json_files import array, find_image, mapping, number, sequence, text

_DISTORTIONS = ("k1", "k2", "k3", "k4", "p1", "p2")
_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")


def read_transforms(content: Mapping[str, Any], path: Path) -> list[Camera]:
    """Cameras of ``frames``: ``file_path`` and ``transform_matrix``, camera to world, OpenGL axes.

    The lens is ``fl_x, fl_y, cx, cy, w, h`` or ``camera_angle_x`` with the size of the images; each
    frame may have its own.

    Raises:
        SourceError: an entry is not a camera, or a lens is distorted.
    """
    cameras = []
    for at, item in enumerate(sequence(content.get("frames"), f"{path}: 'frames'")):
        where = f"{path}: frame {at}"
        frame = mapping(item, where)
        cameras.append(_camera({**content, **frame}, where, path.parent))
    return cameras


def _camera(entry: Mapping[str, Any], where: str, folder: Path) -> Camera:
    model = entry.get("camera_model", "OPENCV")
    bent = [key for key in _DISTORTIONS if number(entry, key, where, 0.0)]
    if model not in _MODELS or bent:
        raise SourceError(
            f"{where}: the lens is distorted ({model}{''.join(', ' + key for key in bent)}); "
            "undistort the images first, e.g. with `colmap image_undistorter`"
        )
    name = text(entry, "file_path", where).removeprefix("./")
    image = find_image(folder, name)
    width, height = _size(entry, where, image)
    if "fl_x" in entry:
        fx = number(entry, "fl_x", where)
    else:
        fx = _focal(width, number(entry, "camera_angle_x", where), where)
    if "fl_y" not in entry and "camera_angle_y" in entry:
        fy = _focal(height, number(entry, "camera_angle_y", where), where)
    else:
        fy = number(entry, "fl_y", where, fx)
    matrix = array(entry, "transform_matrix", where, [(4, 4), (3, 4)])
    # OpenGL looks along -z with y up; a camera here looks along z with y down.
    axes = matrix[:3, :3] * (1.0, -1.0, -1.0)
    try:
        return Camera(
            width=width,
            height=height,
            fx=fx,
            fy=fy,
            cx=number(entry, "cx", where, width / 2),
            cy=number(entry, "cy", where, height / 2),
            rotation=axes.T,
            translation=-axes.T @ matrix[:3, 3],
            name=name,
            image=image,
        )
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from None


def _size(entry: Mapping[str, Any], where: str, image: Path | None) -> tuple[int, int]:
    if "w" in entry and "h" in entry:
        return int(number(entry, "w", where)), int(number(entry, "h", where))
    if image is None:
        raise SourceError(f"{where}: neither 'w' and 'h' nor its image is there to tell the size")
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(image) as file:
            return file.size
    except (OSError, UnidentifiedImageError) as error:
        raise SourceError(f"{image}: cannot be read ({error})") from None


def _focal(side: int, angle: float, where: str) -> float:
    if not 0 < angle < math.pi:
        raise SourceError(f"{where}: a field of view of {angle} radians")
    return side / 2 / math.tan(angle / 2)
