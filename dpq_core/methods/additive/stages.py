"""Additive codebooks: a subvector is the sum of one codeword from each of S stages.

docs/algorithms.md#additive (AQLM, arXiv 2401.06118; VQDM, arXiv 2409.00492). Where all groups
share their codebooks
the stages are AQLM's; with one codebook per group they are VQDM's groupwise ones.
``residual_kmeans`` gives the start, ``alternate`` improves it, ``encoder`` takes it into
Hessian-aware assignment.
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
    points: Tensor,
    grouping: Grouping,
    *,
    K: int,
    spec: KMeansSpec,
    seed: int,
    weights: Tensor | None = None,
) -> AdditiveResult:
    """Each stage is k-means on what the stages before it left over.

    See docs/algorithms.md#residual-kmeans.

    Args:
        points: float32 [G, d, P].
        grouping: of the points.
        K: codewords per codebook.
        spec: of every k-means.
        seed: of the first stage; stage s uses seed + s.
        weights: float32 [G, P], not negative; None weighs all points alike.

    Raises:
        SpecError: as dpq_core.methods.codebooks.kmeans.kmeans.
    """
    books, codes, stats = [], [], []
    residual, one = points, grouping.one_stage()
    for stage in range(grouping.stages):
        result = kmeans(residual, one, K=K, spec=spec, seed=seed + stage, weights=weights)
        books.append(result.codebooks)
        codes.append(result.codes)
        stats.append(result.stats)
        if stage + 1 < grouping.stages:
            residual = residual - decode_sum(result.codes, result.codebooks, one)
    return AdditiveResult(codebooks=torch.cat(books), codes=torch.cat(codes), stats=tuple(stats))


def encoder(codebooks: Tensor, grouping: Grouping, *, beam: int = 4, sweeps: int = 1) -> Encoder:
    """The encoder of one column group for Hessian-aware assignment (``methods.assignment``).

    Args:
        codebooks: float32 [S*B, K, d].
        grouping: of the layer's subvectors.
        beam: partial sums kept per point.
        sweeps: of coordinate descent after the search.
    """
    books = codebooks.view(grouping.stages, -1, *codebooks.shape[1:])

    def encode(targets: Tensor, metric: Tensor, group: int, /) -> Tensor:
        own = books[:, group // grouping.groups_per_codebook]  # [S, K, d]
        points, metrics = targets.T[None].contiguous(), metric[None]
        one_group = Grouping.of_subvectors(points.shape, stages=grouping.stages)
        codes = beam_search(points, own, one_group, metric=metrics, beam=beam)
        for _ in range(sweeps):
            codes = sweep(points, own, codes, one_group, metric=metrics)
        return codes

    return encode
