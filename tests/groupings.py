"""The grouping of subvectors that a test has made itself."""

from __future__ import annotations

from torch import Tensor

from dpq_core.grouping import Grouping


def grouped(subvectors: Tensor, sharing: int = 1, *, stages: int = 1, pad: int = 0) -> Grouping:
    """The grouping of ``[G, d, P]`` in which ``sharing`` adjacent groups share a codebook."""
    return Grouping.of_subvectors(
        subvectors.shape, groups_per_codebook=sharing, stages=stages, pad=pad
    )
