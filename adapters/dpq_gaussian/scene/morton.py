"""Morton order, in which Gaussians that are near in space become neighbours in the file."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

GRID_BITS = 32
"""Bits of a grid coordinate: levels of the octree whose depth-first order this is."""

_KEY_LEVELS = 21  # three bits a level fill a 64-bit key


@numba.njit(cache=True, nogil=True, inline="always")
def _spread(v):  # type: ignore[no-untyped-def]
    """The low 21 bits of a uint64, two zeros between each."""
    v &= np.uint64(0x1FFFFF)
    v = (v | v << np.uint64(32)) & np.uint64(0x1F00000000FFFF)
    v = (v | v << np.uint64(16)) & np.uint64(0x1F0000FF0000FF)
    v = (v | v << np.uint64(8)) & np.uint64(0x100F00F00F00F00F)
    v = (v | v << np.uint64(4)) & np.uint64(0x10C30C30C30C30C3)
    return (v | v << np.uint64(2)) & np.uint64(0x1249249249249249)


@numba.njit(cache=True, nogil=True)
def _keys(grid, shift, out):  # type: ignore[no-untyped-def]
    """Interleave bits ``shift .. shift + 21`` of grid uint32 [N, 3] into uint64 [N], x highest."""
    drop = np.uint64(shift)
    for i in range(len(grid)):
        x, y, z = np.uint64(grid[i, 0]), np.uint64(grid[i, 1]), np.uint64(grid[i, 2])
        key = _spread(x >> drop) << np.uint64(2)
        out[i] = key | _spread(y >> drop) << np.uint64(1) | _spread(z >> drop)


def keys(grid: npt.NDArray[np.uint32], shift: int) -> npt.NDArray[np.uint64]:
    """Morton keys uint64 ``[N]`` of 21 bits per axis, from bit ``shift`` of grid ``[N, 3]``."""
    out = np.empty(len(grid), np.uint64)
    _keys(np.ascontiguousarray(grid), shift, out)
    return out


def morton_order(grid: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Indices that sort grid coordinates uint32 ``[N, 3]`` along the Morton curve; stable."""
    coarse = keys(grid, GRID_BITS - _KEY_LEVELS)
    order = np.argsort(coarse, kind="stable")
    ordered = coarse[order]
    if len(order) > 1 and (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((keys(grid, 0), coarse))
    return order
