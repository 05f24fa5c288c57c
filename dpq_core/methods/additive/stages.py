"""Additive codebooks: a subvector is the sum of one codeword from each of S stages.

METHODS 4 (AQLM, arXiv 2401.06118; VQDM, arXiv 2409.00492). With ``tie`` = all groups the stages are
AQLM's shared codebooks; with ``tie`` = 1 they are VQDM's groupwise ones. ``residual_kmeans`` gives
the start, ``alternate`` improves it, ``encoder`` takes it into Hessian-aware assignment.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
from dpq_core.tensor.grouping import Partition

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
    "stored_bytes",
    "sweep",
]


def residual_kmeans(
    points: Tensor,
    *,
    stages: int,
    K: int,
    tie: int = 1,
    pad: int = 0,
    spec: KMeansSpec,
    seed: int,
    weights: Tensor | None = None,
) -> AdditiveResult:
    """Each stage is k-means on what the stages before it left over (METHODS 4.2).

    Args:
        points: float32 [G, d, P].
        stages: S.
        K: codewords per codebook.
        tie: adjacent groups that share their codebooks.
        pad: coordinates at the end of the last group that do not count.
        spec: of every k-means.
        seed: of the first stage; stage s uses seed + s.
        weights: float32 [G, P], not negative; None weighs all points alike.

    Raises:
        SpecError: as dpq_core.methods.codebooks.kmeans.kmeans.
    """
    books, codes, stats = [], [], []
    residual = points
    for stage in range(stages):
        result = kmeans(
            residual, K=K, tie=tie, pad=pad, spec=spec, seed=seed + stage, weights=weights
        )
        books.append(result.codebooks)
        codes.append(result.codes)
        stats.append(result.stats)
        if stage + 1 < stages:
            residual = residual - decode_sum(result.codes, result.codebooks, stages=1, tie=tie)
    return AdditiveResult(codebooks=torch.cat(books), codes=torch.cat(codes), stats=tuple(stats))


def encoder(
    codebooks: Tensor, *, stages: int, tie: int = 1, beam: int = 4, sweeps: int = 1
) -> Encoder:
    """The encoder of one column group for Hessian-aware assignment (``methods.assignment``).

    Args:
        codebooks: float32 [S*C, K, d].
        stages: S.
        tie: adjacent groups that share their codebooks.
        beam: partial sums kept per point.
        sweeps: of coordinate descent after the search.
    """
    books = codebooks.view(stages, -1, *codebooks.shape[1:])

    def encode(targets: Tensor, metric: Tensor, group: int, /) -> Tensor:
        own = books[:, group // tie]  # [S, K, d]
        points, metrics = targets.T[None].contiguous(), metric[None]
        codes = beam_search(points, own, stages=stages, metric=metrics, beam=beam)
        for _ in range(sweeps):
            codes = sweep(points, own, codes, stages=stages, metric=metrics)
        return codes

    return encode


def stored_bytes(partition: Partition, *, stages: int, value_bytes: int) -> int:
    """Bytes of the codes and codebooks of a tensor: what VQDM's own estimate leaves out.

    Every stage has codes of all groups and one codebook per ``tie`` groups, so groupwise codebooks
    count once for each group (METHODS 4.1).

    Args:
        partition: all sizes.
        stages: S.
        value_bytes: of one stored coordinate of a codeword.
    """
    p = partition
    return stages * (p.groups * p.group_bytes + p.codebooks * p.K * p.d * value_bytes)
