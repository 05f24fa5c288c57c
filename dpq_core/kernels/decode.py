"""Decode rows of a quantized weight on a CPU, faster than a chain of torch gathers.

Parallel over blocks of rows: the codes of a block are read group by group (they lie next to each
other), its dense rows stay in the L2 cache until they are rounded to the output dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_ROW_BLOCK = 32
_UNROLLED = (1, 2, 3, 4, 8)
"""Subvector lengths compiled with a constant inner loop; others share one general kernel."""


@functools.cache
def _kernel(d: int) -> Callable[..., Any]:
    """The kernel for a constant d; 0 means any d."""

    @numba.njit(parallel=True, cache=True, nogil=True)
    def decode(codes, books, tie, scale, out):  # type: ignore[no-untyped-def]
        """Codes uint [G, n], books float32 [C, K, D], scale float32 [n], out [n, G * D]."""
        groups, count = codes.shape
        size = d if d > 0 else books.shape[2]
        for block in numba.prange((count + _ROW_BLOCK - 1) // _ROW_BLOCK):
            first = block * _ROW_BLOCK
            last = min(first + _ROW_BLOCK, count)
            for group in range(groups):
                book = books[group // tie]
                for r in range(first, last):
                    word = book[codes[group, r]]
                    for i in range(size):
                        out[r, group * size + i] = word[i] * scale[r]

    return decode


@numba.njit(parallel=True, cache=True, nogil=True)
def _round_to_bfloat16(bits, out):  # type: ignore[no-untyped-def]
    """Float32 bits uint32 [n] -> bfloat16 bits uint16 [n], to nearest, ties to even."""
    for i in numba.prange(bits.size):
        out[i] = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> 16) & np.uint32(1))) >> 16


def rows(
    codes: Tensor, books: Tensor, tie: int, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Codes uint8 or uint16 ``[groups, n]`` -> dense rows ``[n, groups * d]`` of ``dtype``.

    Args:
        codes: group j reads codebook j // tie.
        books: float32 ``[codebooks, K, d]``.
        tie: groups per codebook.
        scale: float32 ``[n]`` or None.
        dtype: of the result; products are rounded from float32 once.
    """
    d = books.shape[2]
    n = codes.shape[1]
    dense = torch.empty(n, codes.shape[0] * d)
    factors = np.ones(n, np.float32) if scale is None else scale.numpy()
    kernel = _kernel(d if d in _UNROLLED else 0)
    kernel(codes.numpy(), books.numpy(), tie, factors, dense.numpy())
    if dtype is not torch.bfloat16:
        return dense.to(dtype)
    rounded = torch.empty(dense.shape, dtype=torch.bfloat16)
    _round_to_bfloat16(
        dense.view(torch.uint32).numpy().reshape(-1), rounded.view(torch.uint16).numpy().reshape(-1)
    )
    return rounded
