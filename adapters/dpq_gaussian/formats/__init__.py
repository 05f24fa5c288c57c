"""Readers and writers of splat file formats: .ply, .splat, .spz, compressed.ply and .sog."""

from __future__ import annotations

from dpq_gaussian.formats.coordinates import NATIVE, SYSTEMS, convert, turned_like
from dpq_gaussian.formats.loaded import Loaded
from dpq_gaussian.formats.reading import read_scene
from dpq_gaussian.formats.stream import SceneStream
from dpq_gaussian.formats.writing import WRITABLE, Target, Written, write_scene
from dpq_gaussian.scene import check_values

__all__ = [
    "NATIVE",
    "SYSTEMS",
    "WRITABLE",
    "Loaded",
    "SceneStream",
    "Target",
    "Written",
    "check_values",
    "convert",
    "read_scene",
    "turned_like",
    "write_scene",
]
