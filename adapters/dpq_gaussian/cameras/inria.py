"""Readers of ``cameras.json``: the list of Kerbl et al.'s code, and one of w2c matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpq_core.errors import SourceError
from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.cameras.json_files import array, find_image, mapping, number, sequence, text


def read_list(content: Any, path: Path) -> list[Camera]:
    """Reads a list of ``img_name``, ``position``, ``rotation``, ``fx``, ``fy`` (3DGS training).

    ``rotation`` is camera to world by rows and ``position`` the camera's centre; the principal
    point is the middle of the picture.

    Raises:
        SourceError: an entry is not a camera.
    """
    cameras = []
    for at, item in enumerate(sequence(content, str(path))):
        where = f"{path}: camera {at}"
        entry = mapping(item, where)
        width, height = number(entry, "width", where), number(entry, "height", where)
        rotation = array(entry, "rotation", where, [(3, 3)]).T
        name = text(entry, "img_name", where)
        cameras.append(
            _camera(
                where,
                width=int(width),
                height=int(height),
                fx=number(entry, "fx", where),
                fy=number(entry, "fy", where),
                cx=width / 2,
                cy=height / 2,
                rotation=rotation,
                translation=-rotation @ array(entry, "position", where, [(3,)]),
                name=name,
                image=find_image(path.parent, name),
            )
        )
    return cameras


def read_frames(content: Mapping[str, Any], path: Path) -> list[Camera]:
    """Reads one lens ``width, height, fx, fy, cx, cy`` and ``frames`` of ``name`` and ``w2c``.

    ``w2c`` is 3x4 or 4x4, OpenCV's axes.

    Raises:
        SourceError: an entry is not a camera.
    """
    lens = {key: number(content, key, str(path)) for key in ("fx", "fy", "cx", "cy")}
    size = {key: int(number(content, key, str(path))) for key in ("width", "height")}
    cameras = []
    for at, item in enumerate(sequence(content.get("frames"), f"{path}: 'frames'")):
        where = f"{path}: frame {at}"
        entry = mapping(item, where)
        matrix = array(entry, "w2c", where, [(4, 4), (3, 4)])
        name = text(entry, "name", where)
        cameras.append(
            _camera(
                where,
                **size,
                **lens,
                rotation=matrix[:3, :3],
                translation=matrix[:3, 3],
                name=name,
                image=find_image(path.parent, name),
            )
        )
    return cameras


def _camera(where: str, **fields: Any) -> Camera:
    try:
        return Camera(**fields)
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from None
