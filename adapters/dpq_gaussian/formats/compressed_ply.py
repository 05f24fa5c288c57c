"""PlayCanvas' compressed.ply: 16 bytes per Gaussian relative to the bounds of its chunk of 256."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SourceError
from dpq_gaussian.formats.levels import LOGIT_OF_LEVEL, SH_C0, fill_largest
from dpq_gaussian.formats.loaded import Loaded, check_claim
from dpq_gaussian.formats.ply import load
from dpq_gaussian.formats.ply_header import Header
from dpq_gaussian.scene import ROWS, SH_REST, FloatArray, Scene

CHUNK = 256
"""Gaussians that share their bounds."""

PACKED = tuple(f"packed_{what}" for what in ("position", "rotation", "scale", "color"))
BOUNDS = tuple(f"{end}_{what}{axis}" for what in ("", "scale_") for end in ("min", "max")
               for axis in "xyz")  # fmt: skip
COLOURS = tuple(f"{end}_{channel}" for end in ("min", "max") for channel in "rgb")

# The levels 0 and 255 are the ends of [-4, 4], the others lie in the middle of 1/256 of it.
_SH = (np.arange(256) + 0.5) / 256.0
_SH[[0, 255]] = 0.0, 1.0
SH_OF_LEVEL = ((_SH - 0.5) * 8.0).astype(np.float32)


def is_compressed(header: Header) -> bool:
    """Whether a .ply is of this kind."""
    vertex = header.element("vertex")
    return vertex is not None and set(PACKED) <= set(vertex.properties)


def read(path: Path, header: Header) -> Loaded:
    """Decodes a compressed.ply to a scene.

    Raises:
        SourceError: chunks or harmonics do not belong to the Gaussians, or it is truncated.
    """
    count, harmonics = _check(path, header)
    elements = load(path, header)
    vertex, chunks = elements["vertex"], elements["chunk"]
    colours = "min_r" in (chunks.dtype.names or ())
    lows, highs = _bounds(chunks, "min", colours), _bounds(chunks, "max", colours)
    scene = Scene(
        positions=np.empty((count, 3), dtype=np.float32),
        log_scales=np.empty((count, 3), dtype=np.float32),
        rotations=np.empty((count, 4), dtype=np.float32),
        opacity_logits=LOGIT_OF_LEVEL[vertex["packed_color"] & 255],
        sh_dc=np.empty((count, 3), dtype=np.float32),
        sh_rest=np.empty((count, harmonics, 3), dtype=np.float32),
    )
    for start in range(0, count, ROWS):
        part = slice(start, start + ROWS)
        rows = vertex[part]
        owner = np.arange(start, start + len(rows)) // CHUNK
        low, high = lows[owner], highs[owner]
        with np.errstate(invalid="ignore", over="ignore"):  # bad bounds: see check_values
            levels = _fractions(rows)
            values = low * (1.0 - levels) + high * levels
            scene.positions[part] = values[:, 0:3]
            scene.log_scales[part] = values[:, 3:6]
            scene.sh_dc[part] = (values[:, 6:9] - 0.5) / SH_C0
        scene.rotations[part] = _rotations(rows["packed_rotation"])
        for i in range(3 * harmonics):  # channel by channel
            level = elements["sh"][f"f_rest_{i}"][part]
            scene.sh_rest[part, i % harmonics, i // harmonics] = SH_OF_LEVEL[level]
    return Loaded(scene=scene, format="compressed.ply")


def _check(path: Path, header: Header) -> tuple[int, int]:
    """Checks the layout; returns the number of Gaussians and of harmonics beyond colour."""
    vertex, chunk, sh = (header.element(name) for name in ("vertex", "chunk", "sh"))
    assert vertex is not None  # is_compressed
    check_claim(path, vertex.count, 0, 0)
    needed = -(-vertex.count // CHUNK)
    if chunk is None or chunk.count != needed:
        present = chunk.count if chunk else 0
        raise SourceError(f"{path}: {present} chunks for {vertex.count} Gaussians, not {needed}")
    fits = [vertex.properties[name] in ("uint", "uint32") for name in PACKED]
    bounds = (*BOUNDS, *COLOURS) if set(COLOURS) & set(chunk.properties) else BOUNDS
    fits += [chunk.properties.get(name) in ("float", "float32") for name in bounds]
    harmonics = 0
    if sh is not None:
        harmonics = len(sh.properties) // 3
        fits += [
            sh.properties.get(f"f_rest_{i}") in ("uchar", "uint8")
            for i in range(len(sh.properties))
        ]
        fits += [
            sh.count == vertex.count,
            harmonics in SH_REST.values(),
            len(sh.properties) % 3 == 0,
        ]
    if not all(fits):
        raise SourceError(f"{path}: not the layout of a compressed.ply (names, types or counts)")
    return vertex.count, harmonics


def _bounds(chunks: npt.NDArray[Any], end: str, colours: bool) -> npt.NDArray[np.float64]:
    """float64 ``[chunks, 9]``: position, scale, colour; older files have colours in [0, 1]."""
    names = [f"{end}_{axis}" for axis in "xyz"] + [f"{end}_scale_{axis}" for axis in "xyz"]
    names += [f"{end}_{channel}" for channel in "rgb"] if colours else []
    bounds = np.full((len(chunks), 9), 0.0 if end == "min" else 1.0)
    for i, name in enumerate(names):
        bounds[:, i] = chunks[name]
    return bounds


def _fractions(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """float64 ``[n, 9]`` in [0, 1]: position and scale in 11, 10, 11 bits, colour in 8 each."""
    columns = []
    for name in ("packed_position", "packed_scale"):
        word = rows[name]
        columns += [(word >> 21) / 2047.0, (word >> 11 & 1023) / 1023.0, (word & 2047) / 2047.0]
    columns += [(rows["packed_color"] >> shift & 255) / 255.0 for shift in (24, 16, 8)]
    return np.stack(columns, axis=1)


def _rotations(words: npt.NDArray[Any]) -> FloatArray:
    """float32 ``[n, 4]``: the largest component's index in 2 bits, the others in 10 each."""
    largest = (words >> 30).astype(np.intp)
    rotations = np.zeros((len(words), 4), dtype=np.float32)
    rest = np.stack([(words >> shift & 1023) / 1023.0 - 0.5 for shift in (20, 10, 0)], axis=1)
    kept = np.arange(4)[None, :] != largest[:, None]
    rotations[kept] = (rest * np.sqrt(2.0)).astype(np.float32).ravel()
    return fill_largest(rotations, largest)
