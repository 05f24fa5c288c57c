"""Codebooks of trellis codes, the same for all tensors (docs/algorithms.md#trellis).

One for each rate, made for normally distributed subvectors; FORMAT.md (F31) fixes their bytes.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WIDTH = 2
"""d of every trellis code."""

MAX_RATE = 8
"""Bits of the code of one subvector at most."""

RESTART = 128
"""Points after which a stream starts anew: the bits before such a point count as zeros."""

STEPS = 30
"""Steps of a stored coordinate of a codeword per standard deviation."""


@functools.cache
def codebooks(K: int) -> Tensor:
    """The codebooks of all rates, float32 ``[9, K, 2]``; that of rate 0 is zero.

    Args:
        K: codewords of a codebook, one of ``spec.TRELLIS_SIZES``.
    """
    file = Path(__file__).with_name(f"trellis_{K}.npy")
    stored = np.load(file, allow_pickle=False)  # int8 [8, K, 2], in units of 1 / STEPS
    books = torch.zeros(MAX_RATE + 1, K, WIDTH)
    books[1:] = torch.from_numpy(stored).float() / STEPS
    return books


@functools.cache
def by_coordinate(K: int) -> Tensor:
    """The codebooks of all rates, coordinate by coordinate: float32 ``[9, 2, K]``."""
    return codebooks(K).mT.contiguous()


def group_bytes(points: int, rate: int) -> int:
    """Bytes of the bit stream of one group."""
    return -(-points // 8) * rate


def starts(rates: Tensor, points: int) -> Tensor:
    """First byte of each group's bit stream: int64 ``[G]``."""
    ends = rates.cumsum(0) * group_bytes(points, 1)
    return ends - rates * group_bytes(points, 1)
