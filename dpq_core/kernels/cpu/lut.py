"""Product with a quantized weight by look-up tables, for few tokens (docs/algorithms.md#lut).

``y[r] = s[r] * sum_j table[j, codes[j, r]]`` with ``table[j, k] = <x_j, c_k>``: K inner products
per group and token instead of one per row. Parallel over blocks of OUTPUT rows, so that no two
threads ever add to the same output (the race of the published PQ CPU kernel, AQLM issue 86).
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from dpq_core.kernels.cpu.threads import spread

_ROW_BLOCK = 512
"""Rows of one task: their float32 sums stay in the L1 cache."""


@numba.njit(cache=True, fastmath=True, nogil=True)
def _sum(table, codes, out, first_task, last_task):  # type: ignore[no-untyped-def]
    """Write the sums of tasks first..last; a task is ``_ROW_BLOCK`` rows of one token."""
    groups, rows = codes.shape
    blocks = (rows + _ROW_BLOCK - 1) // _ROW_BLOCK
    for task in range(first_task, last_task):
        token, first = task // blocks, (task % blocks) * _ROW_BLOCK
        count = min(_ROW_BLOCK, rows - first)
        total = np.zeros(_ROW_BLOCK, np.float32)
        for group in range(groups):
            products = table[token, group]
            code = codes[group, first : first + count]
            for r in range(count):
                total[r] += products[code[r]]
        out[token, first : first + count] = total[:count]


def sum_by_code(table: Tensor, codes: Tensor) -> Tensor:
    """Sum table entries by code: ``out[t, r] = sum_j table[t, j, codes[j, r]]``.

    Args:
        table: float32 ``[tokens, G, K]``.
        codes: uint8 or uint16 ``[G, R]``, every code below K.

    Returns:
        Float32 ``[tokens, R]``.
    """
    tokens, rows = len(table), codes.shape[1]
    out = np.empty((tokens, rows), np.float32)
    arrays = (table.numpy(), codes.numpy(), out)
    tasks = tokens * -(-rows // _ROW_BLOCK)
    spread(lambda first, last: _sum(*arrays, first, last), tasks, tokens * codes.numel())
    return torch.from_numpy(out)
