"""Dense rows and products of trellis codes on a CPU (docs/algorithms.md#trellis).

A bit stream is read from the start of a tile of ``RESTART`` rows, group by group, so that codes
move through memory once and windows are made by shifts.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from dpq_core import trellis_books
from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.decode import as_bytes
from dpq_core.kernels.cpu.scratch import scratch
from dpq_core.kernels.cpu.threads import spread
from dpq_core.trellis_books import RESTART


@numba.njit(cache=True, nogil=True)
def _windows(stream: Any, at: int, rate: int, mask: int, count: int, windows: Any) -> None:
    """Write the windows of the first rows of a tile, whose codes begin at byte ``at``.

    The codes of eight rows are ``rate`` bytes; with the bits before them they fit a register, from
    which all their windows are shifted. Where a code is a byte, they need two.

    Args:
        stream: uint8.
        at: first byte of the tile.
        rate: 1 to 8.
        mask: ones in the bits of a window.
        count: rows to write, rounded up to eights.
        windows: int32 ``[RESTART]``, written.
    """
    bits, ones = np.uint64(0), np.uint64(mask)
    if rate == 8:
        for r in range((count + 7) // 8 * 8):
            bits = (bits << np.uint64(8)) | np.uint64(stream[at + r])
            windows[r] = np.int32(bits & ones)
        return
    for first in range(0, count, 8):
        for byte in range(rate):
            bits = (bits << np.uint64(8)) | np.uint64(stream[at + byte])
        at += rate
        for i in range(8):
            windows[first + i] = np.int32((bits >> np.uint64((7 - i) * rate)) & ones)


@numba.njit(cache=True, nogil=True)
def _decode(streams, starts, rates, books, out, first, first_tile, last_tile):  # type: ignore[no-untyped-def]
    """Write codewords to rows: books [9, K] of one word each, out [n, G] from row ``first`` on."""
    mask = books.shape[1] - 1
    windows = np.zeros(RESTART, np.int32)
    for tile in range(first_tile, last_tile):
        row = tile * RESTART - first
        count = min(RESTART, len(out) - row)
        for group in range(len(rates)):
            rate = rates[group]
            if rate == 0:
                for r in range(count):
                    out[row + r, group] = 0
                continue
            start = starts[group] + tile * (RESTART // 8) * rate
            _windows(streams, start, rate, mask, count, windows)
            for r in range(count):
                out[row + r, group] = books[rate, windows[r]]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _multiply(streams, starts, rates, books, inputs, out, first_tile, last_tile):  # type: ignore[no-untyped-def]
    """Write out [tokens, R] of inputs [tokens, 2 G], for some tiles of rows.

    The books int32 [9, K] hold both coordinates of a codeword as 16-bit integers.
    """
    tokens, rows = out.shape
    mask = books.shape[1] - 1
    windows = np.zeros(RESTART, np.int32)
    first = np.empty(RESTART, np.float32)
    second = np.empty(RESTART, np.float32)
    sixteen = np.int32(16)
    sums = np.empty((tokens, RESTART), np.float32)
    for tile in range(first_tile, last_tile):
        row = tile * RESTART
        count = min(RESTART, rows - row)
        sums[:, :] = np.float32(0)
        for group in range(len(rates)):
            rate = rates[group]
            if rate == 0:
                continue
            start = starts[group] + tile * (RESTART // 8) * rate
            _windows(streams, start, rate, mask, count, windows)
            book = books[rate]
            for r in range(RESTART):
                both = book[windows[r]]
                first[r] = np.float32(np.int16(both))
                second[r] = np.float32(np.int16(both >> sixteen))
            for token in range(tokens):
                x, y = inputs[token, 2 * group], inputs[token, 2 * group + 1]
                for r in range(RESTART):
                    sums[token, r] += x * first[r] + y * second[r]
        out[:, row : row + count] = sums[:, :count]


def rows(
    codes: Tensor,
    starts: Tensor,
    rates: Tensor,
    books: Tensor,
    grouping: Grouping,
    first: int,
    last: int,
) -> Tensor:
    """Dense rows first..last of a core, ``[last - first, G * d]``, before any scale.

    The rows are in memory that the next call on this thread overwrites.

    Args:
        codes: the bit streams, uint8 ``[row_bits, ceil(P / 8)]``.
        starts: first byte of each group's stream, int64 ``[G]``.
        rates: int64 ``[G]``.
        books: ``[9, K, 2]`` in the dtype of the result.
        grouping: grouping of the core.
        first: a multiple of ``RESTART``.
        last: one past the last row.
    """
    shape = last - first, grouping.groups * grouping.d
    size = math.prod(shape) * books.element_size()
    dense = torch.from_numpy(scratch("rows", size)).view(books.dtype).view(shape)
    word = {2: np.uint32, 4: np.uint64}[books.element_size()]
    arrays = (
        codes.reshape(-1).numpy(),
        starts.numpy(),
        rates.numpy(),
        as_bytes(books).view(word).reshape(books.shape[:2]),
        as_bytes(dense).view(word).reshape(last - first, grouping.groups),
        first,
    )
    tile, tiles = first // RESTART, -(-(last - first) // RESTART)
    spread(
        lambda begin, end: _decode(*arrays, tile + begin, tile + end),
        tiles,
        2 * dense.numel(),
    )
    return dense


def product(
    inputs: Tensor,
    codes: Tensor,
    starts: Tensor,
    rates: Tensor,
    books: Tensor,
    grouping: Grouping,
) -> Tensor:
    """Products float32 ``[tokens, R]`` of inputs ``[tokens, C]`` with a core, before any scale.

    Args:
        inputs: any floating dtype.
        codes: the bit streams, uint8 ``[row_bits, ceil(P / 8)]``.
        starts: first byte of each group's stream, int64 ``[G]``.
        rates: int64 ``[G]``.
        books: int32 ``[9, K]``, see ``trellis_books.both_coordinates``.
        grouping: grouping of the core.
    """
    g = grouping
    padded = torch.nn.functional.pad(inputs.float() / trellis_books.STEPS, (0, g.pad))
    out = torch.empty(len(inputs), g.rows)
    arrays = (
        codes.reshape(-1).numpy(),
        starts.numpy(),
        rates.numpy(),
        books.numpy(),
        padded.contiguous().numpy(),
        out.numpy(),
    )
    tiles = -(-g.rows // RESTART)
    steps = g.rows * g.groups * len(inputs)
    spread(lambda first, last: _multiply(*arrays, first, last), tiles, steps)
    return out
