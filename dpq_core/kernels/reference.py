"""The oracle of the nearest-codeword kernels: plain, obvious and slow (float64)."""

from __future__ import annotations

import torch
from torch import Tensor


def assign(
    points: Tensor, codebooks: Tensor, *, tie: int = 1, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Codes int32 [G, N] and squared distances float32 [G, N]; see dpq_core.kernels.assign."""
    G, d, N = points.shape
    codes = torch.empty(G, N, dtype=torch.int32)
    distances = torch.empty(G, N)
    for j in range(G):
        used = d - pad if j == G - 1 else d
        x = points[j, :used].T.double()  # [N, used]
        c = codebooks[j // tie, :, :used].double()  # [K, used]
        for n in range(N):
            squared = (x[n] - c).square().sum(dim=1)  # [K]
            codes[j, n] = squared.argmin()  # the first of equals
            distances[j, n] = squared[codes[j, n]]
    return codes, distances
