"""Nearest codeword under a metric, found as the codeword with the lowest affine score.

``(t - c)^T M (t - c)`` differs from ``c^T M c - 2 (M t).c`` by a number that no codeword changes,
so that no root of the metric is needed, and a singular metric is as good as any. Compiled (numba)
on the CPU, 6 to 40 times as fast there as a matrix product and an argmin; torch elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.threads import spread

TILE_FLOATS = 1 << 24  # scores alive at a time on the torch path: 64 MB


def nearest(targets: Tensor, codebook: Tensor, metric: Tensor) -> Tensor:
    """Code of every target t: the codeword c that minimises ``(t - c)^T M (t - c)``.

    Args:
        targets: float32 [d, P].
        codebook: float32 [K, d].
        metric: float32 M [d, d], symmetric, positive semidefinite.

    Returns:
        Codes int32 [P]; of equal codewords the lowest index (on the CPU).
    """
    centre = codebook.mean(dim=0)  # keeps the products, and with them the rounding, small
    words = codebook - centre
    offsets = ((words @ metric) * words).sum(dim=1) / 2
    points = metric @ (targets - centre[:, None])
    return lowest(points[None], words[None], offsets[None])[0]


def weighted_nearest(targets: Tensor, codebooks: Tensor, weights: Tensor) -> Tensor:
    """Code of every target t under weights of its own: ``argmin_c sum_i w_i (t_i - c_i)^2``.

    Args:
        targets: float32 [B, d, P]: P targets for each of B codebooks.
        codebooks: float32 [B, K, d].
        weights: float32 w [B, d, P], not negative.

    Returns:
        Codes int32 [B, P].
    """
    # w (t - c)^2 = w t^2 - 2 (w t, -w / 2).(c, c^2): affine in the codeword and its squares.
    centre = codebooks.mean(dim=1, keepdim=True)  # [B, 1, d]
    words = codebooks - centre
    shifted = targets - centre.movedim(1, 2)
    points = torch.cat([weights * shifted, weights / -2], dim=1)  # [B, 2 d, P]
    lifted = torch.cat([words, words.square()], dim=2)  # [B, K, 2 d]
    return lowest(points, lifted, lifted.new_zeros(lifted.shape[:2]))


def lowest(points: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
    """Index k of the lowest ``offset_k - x . word_k`` for every point x.

    Args:
        points: float32 x [B, D, P], finite.
        words: float32 [B, K, D].
        offsets: float32 [B, K].

    Returns:
        Int32 [B, P].
    """
    if points.device.type == "cpu":
        return _by_numba(points.contiguous(), words, offsets)
    return _by_torch(points, words, offsets)


def _by_numba(points: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
    """See ``lowest``."""
    import numpy as np

    from dpq_core.kernels.cpu import nearest_jit as cpu_jit
    from dpq_core.kernels.cpu.units import Units

    (B, D, P), K = points.shape, words.shape[1]
    step = 1 if D <= cpu_jit.MAX_UNROLLED_D else cpu_jit.TILE
    packed = words.new_zeros(B, math.ceil(K / step) * step, D + 1)
    packed[:, :K, :D] = -words
    packed[:, :K, D] = offsets
    packed[:, K:, D] = math.inf  # never the lowest
    units = Units.of(Grouping.of_subvectors(points.shape), K=K, width=D + 1).table
    codes = np.zeros((B, P), np.int32)
    data = (points.numpy(), np.empty((0, 0), np.float32))
    block = cpu_jit.LANES * cpu_jit.registers(D)
    books = (packed.numpy(), np.zeros((B, D), np.float32), 0, 0, block)
    sums, dims = np.empty((0, 0, 0)), cpu_jit.unrolled_dims(D)

    def run(first: int, last: int) -> None:
        cpu_jit.run_units(units[first:last], data, books, codes, sums, dims)

    spread(run, len(units), B * P * K)
    return torch.from_numpy(codes)


def _by_torch(points: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
    """See ``lowest``."""
    (B, _, P), K = points.shape, words.shape[1]
    run = min(P, max(1, TILE_FLOATS // (B * min(K, 1 << 14))))
    tile = max(1, TILE_FLOATS // (B * run))
    codes = torch.empty(B, P, dtype=torch.int32, device=points.device)
    for start in range(0, P, run):
        x = points[:, :, start : start + run].movedim(1, 2)  # [B, run, D]
        best = x.new_full(x.shape[:2], math.inf)
        code = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        for first in range(0, K, tile):
            some = slice(first, first + tile)
            scores = torch.baddbmm(
                offsets[:, None, some], x, words[:, some].movedim(1, 2), alpha=-1
            )
            score, index = scores.min(dim=2)
            code = torch.where(score < best, index + first, code)
            best = torch.minimum(best, score)
        codes[:, start : start + run] = code
    return codes
