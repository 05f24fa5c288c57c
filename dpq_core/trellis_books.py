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

MAX_RATE = 12
"""Bits of the code of one subvector at most."""

LOW_RATES = 8
"""Rates up to this one have codebooks of K codewords, and those above of ``HIGH`` times as many."""

HIGH = 4
"""See ``LOW_RATES``: windows of high rates have two more bits, so that they too overlap."""

RESTART = 128
"""Points after which a stream starts anew: the bits before such a point count as zeros."""

STEPS = {1024: 30, 4096: 1000}
"""Steps of a stored coordinate of a codeword per standard deviation, by size of the codebook."""


def size_of(rate: int, K: int) -> int:
    """Number of codewords of the codebook of one rate; its windows are indices below it."""
    return K if rate <= LOW_RATES else HIGH * K


@functools.cache
def codebooks(K: int) -> Tensor:
    """The codebooks of all rates, float32 ``[13, 4 K, 2]``, zeros after the last codeword of each.

    That of rate 0 is zero.

    Args:
        K: codewords of a codebook of a low rate, one of ``spec.TRELLIS_SIZES``.
    """
    books = torch.zeros(MAX_RATE + 1, HIGH * K, WIDTH)
    books[1 : LOW_RATES + 1, :K] = _stored(K)
    books[LOW_RATES + 1 :] = _stored(HIGH * K)
    return books


@functools.cache
def by_coordinate(K: int) -> tuple[Tensor, Tensor]:
    """The codebooks of low rates, 0 among them, and of high ones, coordinate by coordinate.

    Returns:
        float32 ``[9, 2, K]`` and ``[4, 2, 4 K]``.
    """
    low, high = codebooks(K)[: LOW_RATES + 1, :K], codebooks(K)[LOW_RATES + 1 :]
    return low.mT.contiguous(), high.mT.contiguous()


def _stored(K: int) -> Tensor:
    """The codebooks in the file of those of K codewords, float32 ``[rates, K, 2]``."""
    file = Path(__file__).with_name(f"trellis_{K}.npy")
    return torch.from_numpy(np.load(file, allow_pickle=False)).float() / STEPS[K]


def group_bytes(points: int, rate: int) -> int:
    """Bytes of the bit stream of one group."""
    return -(-points // 8) * rate


def starts(rates: Tensor, points: int) -> Tensor:
    """First byte of each group's bit stream: int64 ``[G]``."""
    ends = rates.cumsum(0) * group_bytes(points, 1)
    return ends - rates * group_bytes(points, 1)
