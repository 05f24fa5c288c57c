"""Assignment of splats to the tiles that they touch, in order of depth (numba).

Splats are sorted by depth once; then a counting sort over tiles keeps that order. All of it is in
one file because numba's disk cache notices changes of the jitted function's file only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from dpq_core.kernels.cpu.threads import spread
from dpq_gaussian.rendering.constants import INV_U, INV_V, MEAN_X, MEAN_Y, REACH, SLOPE, TILE

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True))
FloatArray = npt.NDArray[np.float32]

_CHUNKS = 16  # of the splats; each counts into a table of its own
_STEPS = 64  # a splat costs about as much as this many inner steps
_SLACK = 0.01
"""Pixels added around a splat: alpha is compared with its threshold pixel by pixel, so that a few
pairs too many change nothing, and rounding loses none."""
_FIELDS = (MEAN_X, MEAN_Y, INV_U, SLOPE, INV_V, REACH)


def depth_order(depths: FloatArray) -> npt.NDArray[np.int64]:
    """Indices that sort positive float32 depths; equal ones keep their order."""
    # The bits of positive floats sort like integers; 16-bit keys make NumPy sort by radix.
    bits = depths.view(np.uint32)
    order = np.argsort(bits.astype(np.uint16), kind="stable")
    high = (bits >> 16).astype(np.uint16)
    by_depth: npt.NDArray[np.int64] = order[np.argsort(high[order], kind="stable")]
    return by_depth


def tile_lists(
    splats: FloatArray, size: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The splats of each tile, nearest first.

    Args:
        splats: float32 ``[V, FIELDS]`` in order of depth.
        size: width and height of the picture in pixels.

    Returns:
        ``starts`` int64 ``[tiles + 1]`` into ``pairs`` int32 ``[P]``, indices of splats.
    """
    grid = (-(-size[0] // TILE), -(-size[1] // TILE))
    tiles = grid[0] * grid[1]
    bounds = [chunk * len(splats) // _CHUNKS for chunk in range(_CHUNKS + 1)]
    table = np.zeros((_CHUNKS, tiles), np.int64)
    nothing = np.empty(0, np.int32)

    def visit(first: int, last: int, pairs: npt.NDArray[np.int32]) -> None:
        for chunk in range(first, last):
            _visit((bounds[chunk], bounds[chunk + 1]), splats, grid, table[chunk], pairs)

    steps = _STEPS * len(splats)
    spread(lambda first, last: visit(first, last, nothing), _CHUNKS, steps)
    starts = np.zeros(tiles + 1, np.int64)
    np.cumsum(table.sum(0), out=starts[1:])
    # Where each chunk writes its splats of each tile: after those of the chunks before it.
    table[:] = starts[:-1] + np.cumsum(table, 0) - table
    pairs = np.empty(starts[-1], np.int32)
    spread(lambda first, last: visit(first, last, pairs), _CHUNKS, steps)
    return starts, pairs


@_jit
def _visit(span: Any, splats: Any, grid: Any, table: Any, pairs: Any) -> None:
    """Count the tiles of some splats, or with ``pairs`` enter the splats where ``table`` says."""
    mean_x, mean_y, inv_u, slope, inv_v, reach_field = _FIELDS
    writes = pairs.shape[0] > 0
    for i in range(span[0], span[1]):
        reach = np.float64(splats[i, reach_field])
        std_u, std_v = 1.0 / np.float64(splats[i, inv_u]), 1.0 / np.float64(splats[i, inv_v])
        tilt = np.float64(splats[i, slope])
        # Pixel x has its centre at x + 0.5.
        x, y = np.float64(splats[i, mean_x]) - 0.5, np.float64(splats[i, mean_y]) - 0.5
        high = reach * std_v + _SLACK
        std_x = math.sqrt(std_u * std_u + tilt * tilt * std_v * std_v)
        turn = reach * tilt * std_v * std_v / std_x  # dy of the rightmost point
        low = max(math.ceil(y - high), 0)
        for row in range(low // TILE, grid[1]):
            top = max(row * TILE - y, -high)
            bottom = min(row * TILE + TILE - 1 - y, high)
            if top > bottom:
                break
            right_dy, left_dy = min(max(turn, top), bottom), min(max(-turn, top), bottom)
            right = tilt * right_dy + _half(reach, right_dy / std_v) * std_u + _SLACK + x
            left = tilt * left_dy - _half(reach, left_dy / std_v) * std_u - _SLACK + x
            first = max(math.ceil(max(left, -1.0)), 0) // TILE
            last = math.floor(min(right, 1e6))
            if last < 0:
                continue
            for column in range(first, min(last // TILE, grid[0] - 1) + 1):
                tile = row * grid[0] + column
                if writes:
                    pairs[table[tile]] = i
                table[tile] += 1


@_jit
def _half(reach: Any, dy: Any) -> Any:
    return math.sqrt(max(reach * reach - dy * dy, 0.0))
