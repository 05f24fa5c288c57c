"""Weighted squared error of decoded subvectors: numba on the CPU, torch elsewhere."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from dpq_core.kernels.threads import spread

_CHUNK = 1 << 22
"""Elements that the torch path decodes at a time."""


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _sums(points, codes, books, tie, by_point, by_coordinate, out, first, last):  # type: ignore[no-untyped-def]
    """Weighted squared error and weighted squared norm of some groups, into float64 out [G, 2]."""
    for g in range(first, last):
        book = books[g // tie]
        lost = total = 0.0
        for i in range(points.shape[1]):
            lost_i = total_i = 0.0
            for n in range(points.shape[2]):
                value = points[g, i, n]
                wrong = value - book[codes[g, n], i]
                lost_i += by_point[n] * (wrong * wrong)
                total_i += by_point[n] * (value * value)
            lost += by_coordinate[g, i] * lost_i
            total += by_coordinate[g, i] * total_i
        out[g, 0], out[g, 1] = lost, total


def weighted_error(
    points: Tensor,
    codes: Tensor,
    books: Tensor,
    *,
    tie: int,
    by_point: Tensor,
    by_coordinate: Tensor,
) -> tuple[float, float]:
    """Sum of ``p_n q_gi (x_gin - c_gin)^2``, and the same of ``x^2``.

    Args:
        points: float32 x ``[groups, d, points]``.
        codes: int32 ``[groups, points]``; c is the codeword of its code.
        books: float32 ``[codebooks, K, d]``; group j reads codebook j // tie.
        tie: groups per codebook.
        by_point: float64 p ``[points]``.
        by_coordinate: float64 q ``[groups, d]``; zero for coordinates that do not count.
    """
    if points.device.type != "cpu":
        return _by_torch(points, codes, books, tie, by_point, by_coordinate)
    out = np.empty((len(points), 2))
    weights = (by_point.numpy(), by_coordinate.numpy())
    arrays = (points.numpy(), codes.numpy(), books.numpy(), tie, *weights, out)
    spread(lambda first, last: _sums(*arrays, first, last), len(points), points.numel())
    lost, total = out.sum(axis=0)
    return float(lost), float(total)


def _by_torch(
    points: Tensor, codes: Tensor, books: Tensor, tie: int, p: Tensor, q: Tensor
) -> tuple[float, float]:
    groups, d, count = points.shape
    flat = books.reshape(-1, d)
    step = max(1, _CHUNK // (d * count))
    sums = torch.zeros(2, dtype=torch.float64, device=points.device)
    p, q = p.to(points.device), q.to(points.device)
    for first in range(0, groups, step):
        some = slice(first, first + step)
        book = torch.arange(groups, device=points.device)[some, None] // tie
        words = flat[codes[some].long() + book * books.shape[1]].transpose(1, 2)  # [g, d, points]
        for k, values in enumerate((points[some] - words, points[some])):
            sums[k] += ((values.double().square() @ p) * q[some]).sum()
    lost, total = sums.tolist()
    return lost, total
