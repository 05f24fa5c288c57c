"""Dense rows of a quantized weight, decoded on a CPU faster than by a chain of torch gathers.

Decoding only moves bytes: a codeword is seen as a few machine words (four bfloat16 are one of 64
bits) and copied to its place. Parallel over blocks of rows. The rows of a block are written a cache
line at a time, from as many groups as fill it: rows are often a multiple of 4 KiB apart, where an
L1 cache holds few lines at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from dpq_core.kernels.cpu.scratch import scratch
from dpq_core.kernels.cpu.threads import spread

_ROW_BLOCK = 32
"""Rows of a task."""

_LINE = 64
"""Bytes that are written to a row before the next row's turn."""

_UNROLLED = (1, 2, 3, 4)
"""Words per codeword for which a kernel with a constant inner loop exists; others share one."""

_WORDS = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}
"""Machine word of a number of bytes, widest first."""


@functools.cache
def _kernel(words: int, together: int) -> Callable[..., Any]:
    """The compiled loop for constant numbers of words per codeword and of groups per line.

    Args:
        words: 0 means any number.
        together: groups whose codewords fill a line.
    """

    @numba.njit(cache=True, nogil=True)
    def decode(codes, codebooks, groups_per_codebook, out, first_block, last_block):  # type: ignore[no-untyped-def]
        """Copy codewords to rows: codes [G, n], codebooks [B, K, words], out [n, G * words]."""
        size = words if words > 0 else codebooks.shape[2]
        groups, rows = codes.shape
        whole = groups // together * together
        for block in range(first_block, last_block):
            first = block * _ROW_BLOCK
            last = min(first + _ROW_BLOCK, rows)
            for start in range(0, whole, together):
                book = start // groups_per_codebook
                if (start + together - 1) // groups_per_codebook == book:
                    codebook = codebooks[book]
                    for r in range(first, last):
                        for group in range(start, start + together):
                            for i in range(size):
                                out[r, group * size + i] = codebook[codes[group, r], i]
                else:
                    for r in range(first, last):
                        for group in range(start, start + together):
                            book = group // groups_per_codebook
                            for i in range(size):
                                out[r, group * size + i] = codebooks[book, codes[group, r], i]
            for group in range(whole, groups):
                codebook = codebooks[group // groups_per_codebook]
                for r in range(first, last):
                    for i in range(size):
                        out[r, group * size + i] = codebook[codes[group, r], i]

    return decode


def rows(codes: Tensor, codebooks: Tensor, groups_per_codebook: int) -> Tensor:
    """Dense rows ``[n, G * d]`` of n points of one stage.

    The rows are in memory that the next call on this thread overwrites.

    Args:
        codes: uint8 or uint16 ``[G, n]``; group j reads codebook ``j // groups_per_codebook``.
        codebooks: ``[B, K, d]`` in the dtype of the result.
        groups_per_codebook: adjacent groups that share a codebook.
    """
    B, K, d = codebooks.shape
    n = codes.shape[1]
    size = n * codes.shape[0] * d * codebooks.element_size()
    dense = torch.from_numpy(scratch("rows", size)).view(codebooks.dtype).view(n, -1)
    codeword = d * codebooks.element_size()
    word = next(size for size in _WORDS if codeword % size == 0)
    words = codeword // word
    kernel = _kernel(words if words in _UNROLLED else 0, max(1, _LINE // codeword))
    as_words = as_bytes(codebooks).view(_WORDS[word]).reshape(B, K, words)
    out = as_bytes(dense).view(_WORDS[word])
    arrays = (codes.numpy(), as_words, groups_per_codebook, out)
    spread(lambda first, last: kernel(*arrays, first, last), -(-n // _ROW_BLOCK), dense.numel())
    return dense


def as_bytes(values: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor as uint8, because NumPy has no bfloat16."""
    return values.contiguous().view(torch.uint8).numpy()
