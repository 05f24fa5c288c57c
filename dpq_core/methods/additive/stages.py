"""Additive codebooks: a subvector is the sum of one codeword from each of S stages.

See docs/algorithms.md#additive. Where all groups share a codebook the stages are those of AQLM
(arXiv 2401.06118); with one codebook per group they are the groupwise ones of VQDM (arXiv
2409.00492). ``residual_kmeans`` gives the start, ``alternate`` improves it, and ``encoder`` makes
it usable for assignment with statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.methods.additive.beam import (
    beam_search,
    decode_sum,
    nearest_sums,
    squared_errors,
    sweep,
)
from dpq_core.methods.additive.fit import (
    AdditiveResult,
    AlternateSpec,
    RoundStats,
    alternate,
    fit_codebooks,
)
from dpq_core.methods.assignment.encoders import Encoder
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.spec import KMeansSpec

__all__ = [
    "AdditiveResult",
    "AlternateSpec",
    "RoundStats",
    "alternate",
    "beam_search",
    "decode_sum",
    "encoder",
    "fit_codebooks",
    "nearest_sums",
    "residual_kmeans",
    "squared_errors",
    "sweep",
]


def residual_kmeans(
    subvectors: Tensor,
    grouping: Grouping,
    *,
    K: int,
    spec: KMeansSpec,
    seed: int,
    weights: Tensor | None = None,
) -> AdditiveResult:
    """Additive codebooks and codes by k-means, each stage on the residual of the stages before it.

    See docs/algorithms.md#residual-kmeans.

    Args:
        subvectors: float32 [G, d, P].
        grouping: grouping of the subvectors.
        K: codewords per codebook.
        spec: iterations, noise and start of every k-means.
        seed: seed of the first stage; stage s uses seed + s.
        weights: float32 [G, P], not negative; None weighs all subvectors alike.

    Raises:
        SpecError: as ``dpq_core.methods.codebooks.kmeans.kmeans``.
    """
    codebooks, codes = [], []
    residual, one = subvectors, grouping.one_stage()
    for stage in range(grouping.stages):
        result = kmeans(residual, one, K=K, spec=spec, seed=seed + stage, weights=weights)
        codebooks.append(result.codebooks)
        codes.append(result.codes)
        if stage + 1 < grouping.stages:
            residual = residual - decode_sum(result.codes, result.codebooks, one)
    return AdditiveResult(codebooks=torch.cat(codebooks), codes=torch.cat(codes))


def encoder(codebooks: Tensor, grouping: Grouping, *, beam: int = 4, sweeps: int = 1) -> Encoder:
    """An encoder of sums of codewords for assignment with statistics (``methods.assignment``).

    Args:
        codebooks: float32 [S*B, K, d].
        grouping: grouping of the layer's subvectors.
        beam: partial sums kept per subvector.
        sweeps: sweeps of coordinate descent after the search.
    """
    books = codebooks.view(grouping.stages, -1, *codebooks.shape[1:])

    def encode(targets: Tensor, metric: Tensor, group: int, /) -> Tensor:
        group_books = books[:, group // grouping.groups_per_codebook]  # [S, K, d]
        points, metrics = targets.T[None].contiguous(), metric[None]
        one_group = Grouping.of_subvectors(points.shape, stages=grouping.stages)
        codes = beam_search(points, group_books, one_group, metric=metrics, beam=beam)
        for _ in range(sweeps):
            codes = sweep(points, group_books, codes, one_group, metric=metrics)
        return codes

    return encode
