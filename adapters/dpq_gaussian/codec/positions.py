"""Coding of positions as octree paths, each relative to the path before it.

A cell at depth d is a path of 3 d bits (x, y, z of the first level, then of the second, ...), and
the Morton order sorts these paths. So a path is told by the bit at which it parts from the path
before (there the earlier one has a zero and this one a one) and by its bits after that, which are
as good as random and stored as they are. Neighbours share most of their paths: a position of 16
bits per axis relative to the scene takes about half of its 48 bits.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dpq_core.errors import ArtifactError

MAX_DEPTH = 32
_ROWS = 65_536
_SPARE = 8  # bytes after the bits, so that five can be read anywhere

_jit = numba.njit(cache=True, nogil=True)


@_jit
def parting_bit(x: Any, y: Any, z: Any) -> Any:
    """Bit of the path at which coordinates differ, given their exclusive ors (uint64)."""
    both = x | y | z
    for level in range(MAX_DEPTH):
        drop = np.uint64(MAX_DEPTH - 1 - level)
        if (both >> drop) & np.uint64(1):
            if (x >> drop) & np.uint64(1):
                return 3 * level
            return 3 * level + (1 if (y >> drop) & np.uint64(1) else 2)
    return 3 * MAX_DEPTH  # the same cell


@_jit
def _begin(bit: Any, axis: Any, shared: Any) -> Any:
    """First level of an axis that is stored: what is before it follows from the path before."""
    if bit == 3 * 32:
        return shared
    return bit // 3 + (1 if axis <= bit % 3 else 0)


@_jit
def _encode(grid: Any, depth: Any, parting: Any, bits: Any) -> Any:
    """Grid uint32 [n, 3], depth int64 [n] -> parting int32 [n]; returns the number of bits."""
    count, previous = 0, np.int64(0)
    last = np.zeros(3, np.uint64)
    for i in range(len(grid)):
        x, y, z = np.uint64(grid[i, 0]), np.uint64(grid[i, 1]), np.uint64(grid[i, 2])
        shared = min(depth[i], previous)
        bit = parting_bit(x ^ last[0], y ^ last[1], z ^ last[2])
        if bit >= 3 * shared:
            bit = 3 * 32
        parting[i] = bit
        last[0], last[1], last[2] = x, y, z
        for axis in range(3):
            for level in range(_begin(bit, axis, shared), depth[i]):
                bits[count] = (last[axis] >> np.uint64(31 - level)) & np.uint64(1)
                count += 1
        previous = depth[i]
    return count


@_jit
def _count(depth: Any, parting: Any) -> Any:
    """Number of stored bits; -1 where a path parts beyond its end."""
    count, previous = 0, np.int64(0)
    for i in range(len(depth)):
        shared, bit = min(depth[i], previous), parting[i]
        if bit != 3 * 32 and not 0 <= bit < 3 * shared:
            return -1
        for axis in range(3):
            count += max(0, depth[i] - _begin(bit, axis, shared))
        previous = depth[i]
    return count


@_jit
def _take(data: Any, at: Any, count: Any) -> Any:
    """``count`` <= 32 bits from bit ``at`` of uint8 [m], most significant first."""
    value, byte = np.uint64(0), at >> 3
    for k in range(5):
        value = value << np.uint64(8) | np.uint64(data[byte + k])
    kept = (np.uint64(1) << np.uint64(count)) - np.uint64(1)
    return (value >> np.uint64(40 - (at & 7) - count)) & kept


@_jit
def _decode(depth: Any, parting: Any, data: Any, corner: Any, side: Any, out: Any) -> None:
    """The inverse of ``_encode``, after ``_count`` has approved; ``out`` float32 [n, 3]."""
    at, previous = np.int64(0), np.int64(0)
    last = np.zeros(3, np.uint64)
    unit = side / 4294967296.0
    for i in range(len(depth)):
        d, bit = depth[i], parting[i]
        shared = min(d, previous)
        half = 0.5 if d >= 32 else float(np.uint64(1) << np.uint64(31 - d))
        for axis in range(3):
            begin = min(_begin(bit, axis, shared), d)
            drop = np.uint64(32 - begin)
            value = (last[axis] >> drop) << drop
            if bit != 3 * 32 and axis == bit % 3:
                value |= np.uint64(1) << drop
            if d > begin:
                value |= _take(data, at, d - begin) << np.uint64(32 - d)
                at += d - begin
            last[axis] = value
            out[i, axis] = corner[axis] + (float(value) + half) * unit
        previous = d


def encode(
    grid: npt.NDArray[np.uint32], depth: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], bytes]:
    """Bits of parting int32 ``[n]`` and the stored bits of one chunk.

    Args:
        grid: coordinates ``[n, 3]`` in Morton order.
        depth: levels of each cell ``[n]``, 1..32.
    """
    parting = np.empty(len(grid), np.int32)
    bits = np.empty(3 * int(depth.sum()), np.uint8)
    count = _encode(grid, depth, parting, bits)
    return parting, np.packbits(bits[:count]).tobytes()


def decode(
    depth: npt.NDArray[np.int64],
    parting: npt.NDArray[np.int32],
    data: bytes | memoryview,
    cube: tuple[npt.NDArray[np.float64], float],
    where: str,
) -> npt.NDArray[np.float32]:
    """Centres of the cells, float32 ``[n, 3]``; the inverse of ``encode``.

    Args:
        depth: levels of each cell ``[n]``, 1..32.
        parting: as ``encode`` gave them.
        data: the stored bits.
        cube: the scene's lower corner ``[3]`` and side.
        where: begins an error message.

    Raises:
        ArtifactError: the bits of parting are impossible, or the stored bits too few or many.
    """
    count = _count(depth, parting)
    if count < 0 or -(-count // 8) != len(data):
        raise ArtifactError(
            f"{where}: its paths need {count} bits, but {len(data)} bytes are there"
        )
    padded = np.zeros(len(data) + _SPARE, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    out = np.empty((len(depth), 3), np.float32)
    _decode(depth, parting, padded, cube[0], cube[1], out)
    return out


def to_grid(
    positions: npt.NDArray[np.float32], corner: npt.NDArray[np.float64], side: float
) -> npt.NDArray[np.uint32]:
    """Converts positions to coordinates uint32 ``[N, 3]`` on the octree's finest grid."""
    grid = np.empty(positions.shape, np.uint32)
    for first in range(0, len(grid), _ROWS):
        part = positions[first : first + _ROWS].astype(np.float64)
        scaled = (part - corner) * (2.0**32 / side)
        grid[first : first + _ROWS] = np.clip(scaled, 0, 2.0**32 - 1)
    return grid
