"""Dense rows and products of trellis codes on a CPU (docs/algorithms.md#trellis)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu import trellis_jit
from dpq_core.kernels.cpu.decode import as_bytes
from dpq_core.kernels.cpu.scratch import scratch
from dpq_core.kernels.cpu.threads import spread
from dpq_core.kernels.cpu.trellis_jit import GROUPS
from dpq_core.trellis_books import RESTART

MAX_TOKENS = 16
"""Tokens of one product at most; beyond, decoded rows are multiplied faster."""

_WORDS_OF_A_BLOCK = 1 << 13
"""Codewords of a tile that one thread decodes at a time."""


def quads(rates: Tensor, starts: Tensor) -> Tensor:
    """Which groups a product takes together: four of one rate, and none of rate 0.

    Args:
        rates: int64 ``[G]``.
        starts: first byte of each group's stream, int64 ``[G]``.

    Returns:
        int64 ``[quads, 9]``: first bytes of four streams, indices of their groups (-1 for none),
        and their rate.
    """
    taken = [torch.empty(0, GROUPS, dtype=torch.int64)]
    for rate in sorted(set(rates.tolist())):
        of_rate = (rates == rate).nonzero()[:, 0]
        if rate > 0:
            taken.append(pad(of_rate, (0, -len(of_rate) % GROUPS), value=-1).view(-1, GROUPS))
    groups = torch.cat(taken)
    some = torch.where(groups >= 0, groups, groups[:, :1])
    return torch.cat([starts[some], groups, rates[groups[:, :1]]], dim=1)


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
        books: ``[13, 4 K, 2]`` in the dtype of the result, see ``trellis_books.codebooks``.
        grouping: grouping of the core.
        first: a multiple of ``RESTART``.
        last: one past the last row.
    """
    spare = -grouping.groups % GROUPS
    if spare:
        starts, rates = pad(starts, (0, spare)), pad(rates, (0, spare))  # rate 0: zeros
    height, width = -(-(last - first) // 8) * 8, grouping.groups + spare
    shape = height, width * grouping.d
    dense = torch.from_numpy(scratch("rows", math.prod(shape) * books.element_size()))
    dense = dense.view(books.dtype).view(shape)
    word = {2: np.uint32, 4: np.uint64}[books.element_size()]
    tiles = -(-height // RESTART)
    blocks = -(-width * RESTART // _WORDS_OF_A_BLOCK)
    arrays = (
        streams(codes).numpy(),
        starts.numpy(),
        rates.numpy(),
        as_bytes(books).view(word).reshape(books.shape[:2]),
        as_bytes(dense).view(word).reshape(height, width),
        first // RESTART,
        blocks,
    )
    spread(
        lambda begin, end: trellis_jit.write_tiles(*arrays, begin, end),
        tiles * blocks,
        2 * dense.numel(),
    )
    return dense[: last - first, : grouping.groups * grouping.d]


def product(
    inputs: Tensor,
    codes: Tensor,
    schedule: Tensor,
    books: Tensor,
    outliers: tuple[Tensor, Tensor],
    grouping: Grouping,
) -> Tensor:
    """Products float32 ``[tokens, R]`` of inputs ``[tokens, C]`` with a core, before any scale.

    Args:
        inputs: any floating dtype, at most ``MAX_TOKENS`` tokens.
        codes: the bit streams, uint8 ``[row_bits, ceil(P / 8)]``.
        schedule: which groups are taken together, see ``quads``.
        books: ``[13, 4 K, 2]``, see ``trellis_books.codebooks``.
        outliers: rows and columns int64 ``[2, N]`` and values ``[N]`` of the outliers.
        grouping: grouping of the core.
    """
    tokens, g = 1 << (len(inputs) - 1).bit_length(), grouping
    out = torch.empty(len(inputs), g.rows)
    padded = inputs.float()
    if g.pad:
        padded = pad(padded, (0, g.pad))
    arrays = (
        streams(codes).numpy(),
        schedule.numpy(),
        books.numpy(),
        padded.contiguous().numpy(),
        outliers[0].numpy(),
        outliers[1].float().numpy(),
        out.numpy(),
        trellis_jit.sizes_of(tokens),
    )
    spread(
        lambda first, last: trellis_jit.multiply_tiles(*arrays, first, last),
        -(-g.rows // RESTART),
        g.rows * g.groups * (1 + tokens // 4),
    )
    return out


def streams(codes: Tensor) -> Tensor:
    """The bit streams one after the other: at least the eight bytes that are read at a time."""
    flat = codes.reshape(-1)
    return pad(flat, (0, 8 - len(flat))) if len(flat) < 8 else flat
