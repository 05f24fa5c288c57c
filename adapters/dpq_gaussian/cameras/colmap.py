"""COLMAP's reconstructions: ``cameras`` and ``images``, ``.bin`` or ``.txt``.

A reader of our own: two small documented files, against 38 MB of pycolmap that would then need
guarding against hostile headers all the same. Format: colmap.github.io/format.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpq_core.errors import SourceError
from dpq_gaussian.cameras.camera import Camera, Vectors
from dpq_gaussian.cameras.json_files import find_image

MAX_BYTES = 1 << 32
"""Larger files are refused; images.bin holds every observed point and can be large."""

MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
}
"""Number of a model in .bin files -> its name and how many parameters it has."""
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_PINHOLES = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 3, "RADIAL": 3, "OPENCV": 4}
"""Models that are pinholes when all parameters after the first few are zero."""


@dataclass(frozen=True)
class _Lens:
    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


@dataclass(frozen=True)
class _Pose:
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    lens: int
    name: str


def read_colmap(folder: Path, photographs: Path) -> list[Camera]:
    """Cameras of a reconstruction, by name.

    Args:
        folder: holds ``cameras.bin`` and ``images.bin``, or both as ``.txt``.
        photographs: folder of the images, or the one that has it as ``images``.

    Raises:
        SourceError: a file is missing, damaged, or has lenses that are not pinholes.
    """
    binary = (folder / "cameras.bin").is_file()
    suffix = ".bin" if binary else ".txt"
    lens_path, pose_path = folder / f"cameras{suffix}", folder / f"images{suffix}"
    lens_bytes, pose_bytes = _read(lens_path), _read(pose_path)
    try:
        lenses = dict((_binary_lenses if binary else _text_lenses)(lens_bytes))
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        raise SourceError(f"{lens_path}: damaged ({error})") from None
    try:
        poses = list((_binary_poses if binary else _text_poses)(pose_bytes))
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        raise SourceError(f"{pose_path}: damaged ({error})") from None
    if not poses:
        raise SourceError(f"{pose_path}: holds no images")
    cameras = []
    for pose in poses:
        if pose.lens not in lenses:
            raise SourceError(f"{pose_path}: image {pose.name!r} has unknown camera {pose.lens}")
        cameras.append(_camera(pose, lenses[pose.lens], pose_path, photographs))
    return sorted(cameras, key=lambda camera: camera.name)


def _camera(pose: _Pose, lens: _Lens, path: Path, photographs: Path) -> Camera:
    kept = _PINHOLES.get(lens.model, 0)
    if not kept or any(lens.parameters[kept:]):
        raise SourceError(
            f"{path.parent}: camera {pose.lens} is distorted ({lens.model}); "
            "run `colmap image_undistorter` and give its output"
        )
    focal = lens.parameters[:1] * 2 if lens.model in _ONE_FOCAL else lens.parameters[:2]
    fx, fy, cx, cy = (*focal, *lens.parameters[kept - 2 : kept])
    try:
        return Camera(
            width=lens.width,
            height=lens.height,
            fx=fx,
            fy=fy,
            cx=cx,
            cy=cy,
            rotation=_rotation(pose.quaternion),
            translation=np.array(pose.translation),
            name=pose.name,
            image=find_image(photographs, pose.name),
        )
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None


def _rotation(quaternion: tuple[float, ...]) -> Vectors:
    q = np.array(quaternion)
    length = np.linalg.norm(q)
    w, x, y, z = q / length if length > 0 else q * np.nan
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path}: larger than {MAX_BYTES >> 30} GiB")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None


class _Reader:
    """Little-endian fields, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def name(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return text


def _binary_lenses(data: bytes) -> Iterator[tuple[int, _Lens]]:
    reader = _Reader(data)
    (count,) = reader.take("Q")
    for _ in range(count):  # a count that is too large ends at the end of the file
        number, model, width, height = reader.take("iiQQ")
        if model not in MODELS:
            raise ValueError(f"unknown camera model {model}")
        name, parameters = MODELS[model]
        yield number, _Lens(name, width, height, reader.take(f"{parameters}d"))


def _binary_poses(data: bytes) -> Iterator[_Pose]:
    reader = _Reader(data)
    (count,) = reader.take("Q")
    for _ in range(count):
        _, *pose, lens = reader.take("i7di")
        name = reader.name()
        (points,) = reader.take("Q")
        reader.at += 24 * points
        if reader.at > len(data):
            raise ValueError("ends before its last image")
        yield _Pose(tuple(pose[:4]), tuple(pose[4:]), lens, name)


def _text_lenses(data: bytes) -> Iterator[tuple[int, _Lens]]:
    counts = dict(MODELS.values())
    for line in data.decode("utf-8").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        number, model, width, height, *parameters = words
        if len(parameters) != counts.get(model, -1):
            raise ValueError(f"unknown camera model {model} of {len(parameters)} parameters")
        lens = _Lens(model, int(width), int(height), tuple(float(p) for p in parameters))
        yield int(number), lens


def _text_poses(data: bytes) -> Iterator[_Pose]:
    lines = iter(data.decode("utf-8").splitlines())
    for line in lines:
        words = line.split(maxsplit=9)
        if not words or words[0].startswith("#"):
            continue
        pose = [float(word) for word in words[1:8]]
        yield _Pose(tuple(pose[:4]), tuple(pose[4:]), int(words[8]), words[9].rstrip())
        next(lines, None)  # the points that it sees, possibly none
