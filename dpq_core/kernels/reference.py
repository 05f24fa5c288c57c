"""The oracle of the nearest-codeword kernels: plain, obvious and slow, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core.grouping import Grouping


def assign(
    subvectors: Tensor, codebooks: Tensor, grouping: Grouping | None = None
) -> tuple[Tensor, Tensor]:
    """Codes int32 [G, P] and squared distances float32 [G, P]; see dpq_core.kernels.assign."""
    grouping = grouping or Grouping.of_subvectors(subvectors.shape)
    G, d, P = subvectors.shape
    codes = torch.empty(G, P, dtype=torch.int32)
    distances = torch.empty(G, P)
    for j in range(G):
        used = d - grouping.pad if j == G - 1 else d
        x = subvectors[j, :used].T.double()  # [P, used]
        c = codebooks[j // grouping.groups_per_codebook, :, :used].double()  # [K, used]
        for n in range(P):
            squared = (x[n] - c).square().sum(dim=1)  # [K]
            codes[j, n] = squared.argmin()  # the first of equals
            distances[j, n] = squared[codes[j, n]]
    return codes, distances
