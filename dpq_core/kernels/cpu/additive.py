"""Sums of residuals over the members of additive codewords: numba on the CPU, torch elsewhere."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.threads import spread, thread_count
from dpq_core.kernels.cpu.units import BOOK, GROUP, SLOT, START, STOP, Units

_CHUNK = 1 << 22
"""Coordinates that the torch path decodes at a time."""


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _scatter(units, points, codes, words, weights, pad, out):  # type: ignore[no-untyped-def]
    """Add the sums of some units (Units.table) to out float64 [slots, S, K, d]."""
    S, G, _ = codes.shape
    d = words.shape[3]
    residual = np.empty(d)
    for u in range(len(units)):
        g, book, slot = units[u, GROUP], units[u, BOOK], units[u, SLOT]
        used = d - pad if g == G - 1 else d
        for p in range(units[u, START], units[u, STOP]):
            for i in range(used):
                residual[i] = points[g, i, p] if len(points) > 0 else 0.0
            for s in range(S):
                word = words[s, book, codes[s, g, p]]
                for i in range(used):
                    residual[i] -= word[i]
            if len(weights) > 0:
                for i in range(used):
                    residual[i] *= weights[g, p]
            for s in range(S):
                total = out[slot, s, codes[s, g, p]]
                for i in range(used):
                    total[i] += residual[i]


def scatter_residual(
    points: Tensor | None,
    codes: Tensor,
    words: Tensor,
    grouping: Grouping,
    *,
    weights: Tensor | None,
) -> Tensor:
    """Sum of ``w (x - sum of codewords)`` over the members of every codeword of every stage.

    With all points this is the negative half gradient of the weighted squared error; with None for
    x = 0 it is minus the product of the normal matrix (co-occurrences of codewords) and ``words``.

    Args:
        points: float32 x [G, d, P], or None for zero.
        codes: int32 [S, G, P].
        words: float64 [S, B, K, d].
        grouping: grouping of the subvectors.
        weights: float32 w [G, P], or None for one.

    Returns:
        float64 [S, B, K, d], the same for any number of threads.
    """
    if words.device.type != "cpu":
        return _by_torch(points, codes, words, grouping, weights=weights)
    (S, G, P), (_, B, K, d) = codes.shape, words.shape
    units = Units.of(grouping, K=K, width=S * d, mask_pad=False)
    out = np.zeros((B * units.slots, S, K, d))
    steps = S * G * d * P
    batches = units.batches(thread_count(len(units.table), steps))
    arrays = (
        np.empty((0, 0, 0), np.float32) if points is None else points.contiguous().numpy(),
        codes.contiguous().numpy(),
        words.contiguous().numpy(),
        np.empty((0, 0), np.float32) if weights is None else weights.contiguous().numpy(),
    )

    def run(first: int, last: int) -> None:
        _scatter(units.table[batches[first][0] : batches[last - 1][1]], *arrays, grouping.pad, out)

    spread(run, len(batches), steps)
    per_book = torch.from_numpy(out).view(B, units.slots, S, K, d)
    total = per_book[:, 0]
    for slot in range(1, units.slots):  # in a fixed order
        total = total + per_book[:, slot]
    return total.movedim(1, 0).contiguous()


def _by_torch(
    points: Tensor | None,
    codes: Tensor,
    words: Tensor,
    grouping: Grouping,
    *,
    weights: Tensor | None,
) -> Tensor:
    """The sums as integers, which do not depend on the order in which a GPU adds them up."""
    (S, G, P), (_, B, K, d) = codes.shape, words.shape
    largest = (0.0 if points is None else float(points.abs().max())) + float(
        words.abs().amax((1, 2, 3)).sum()
    )
    heaviest = 1.0 if weights is None else float(weights.max())
    bound = math.frexp(max(largest * heaviest, torch.finfo(torch.float32).tiny))[1]
    scale = math.ldexp(1.0, 62 - (G * P).bit_length() - bound)
    sums = torch.zeros(S, B * K, d, dtype=torch.int64, device=words.device)
    step = max(1, _CHUNK // (d * P))
    for first in range(0, G, step):
        groups = torch.arange(first, min(first + step, G), device=words.device)
        some = slice(first, first + len(groups))
        slots = (
            codes[:, some].long() + (groups // grouping.groups_per_codebook * K)[:, None]
        )  # [S, g, P]
        members = [words[s].reshape(-1, d)[slots[s]] for s in range(S)]
        residual = -torch.stack(members).sum(dim=0)  # [g, P, d]
        if points is not None:
            residual = residual + points[some].movedim(1, 2)
        if weights is not None:
            residual = residual * weights[some, :, None]
        if grouping.pad and some.stop >= G:
            residual[-1, :, d - grouping.pad :] = 0
        values = (residual * scale).round().long().view(-1, d)
        for s in range(S):
            sums[s].index_add_(0, slots[s].reshape(-1), values)
    return (sums.double() / scale).view(S, B, K, d)
