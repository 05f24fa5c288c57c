"""Decode rows of a quantized weight on a CPU, faster than a chain of torch gathers.

Parallel over blocks of rows: the codes of a block are read group by group (they lie next to each
other) while its dense rows stay in the L2 cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from dpq_core.kernels.threads import spread

_ROW_BLOCK = 32
_UNROLLED = (1, 2, 3, 4, 8)
"""Subvector lengths compiled with a constant inner loop; others share one general kernel."""


@functools.cache
def _kernel(d: int) -> Callable[..., Any]:
    """The kernel for a constant d; 0 means any d."""

    @numba.njit(cache=True, nogil=True)
    def decode(codes, books, tie, scale, out, first_block, last_block):  # type: ignore[no-untyped-def]
        """Codes uint [G, n], books float32 [C, K, D], scale float32 [n], out [n, G * D]."""
        size = d if d > 0 else books.shape[2]
        for block in range(first_block, last_block):
            first = block * _ROW_BLOCK
            last = min(first + _ROW_BLOCK, codes.shape[1])
            for group in range(codes.shape[0]):
                book = books[group // tie]
                for r in range(first, last):
                    word = book[codes[group, r]]
                    for i in range(size):
                        out[r, group * size + i] = word[i] * scale[r]

    return decode


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
    arrays = (codes.numpy(), books.numpy(), tie, factors, dense.numpy())
    spread(lambda first, last: kernel(*arrays, first, last), -(-n // _ROW_BLOCK), dense.numel())
    return dense.to(dtype)
