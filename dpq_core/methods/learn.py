"""Codebooks, pool and codes of one tensor's subvectors, before they are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import SpecError
from dpq_core.methods.additive import stages as additive
from dpq_core.methods.codebooks.kmeans import IterationStats, kmeans
from dpq_core.methods.pool import methods as pool
from dpq_core.methods.pool.refine import refine
from dpq_core.spec import QuantSpec
from dpq_core.tensor.grouping import Partition
from dpq_core.tensor.int8 import to_int8
from dpq_core.tensor.packing import pack
from dpq_core.tensor.pq_tensor import stored_values


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be quantized.

    Attributes:
        points: scaled subvectors, float32 ``[groups, d, points]``.
        partition: all sizes.
        spec: all choices.
        seed: of everything random.
        name: of the tensor, for messages.
        weights: how much each subvector counts, float32 ``[groups, points]``, or None.
    """

    points: Tensor
    partition: Partition
    spec: QuantSpec
    seed: int
    name: str
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Code:
    """A quantization of the subvectors.

    Attributes:
        values: float32, the codebooks ``[stages * codebooks, K, d]`` or, with ``index``, the pool
            ``[N, d]``.
        codes: int32 ``[stages * groups, points]``.
        index: int32 ``[stages * codebooks, K]`` into the pool, or None.
    """

    values: Tensor
    codes: Tensor
    index: Tensor | None = None

    @property
    def books(self) -> Tensor:
        """The codebooks ``[stages * codebooks, K, d]``, read through the pool if there is one."""
        return self.values if self.index is None else self.values[self.index.long()]


def learn(job: Job) -> tuple[Code, tuple[IterationStats, ...]]:
    """Codebooks by k-means, additive stages, a pool: as the spec has it, without statistics.

    Raises:
        SpecError: weights that are not finite.
    """
    p, spec = job.partition, job.spec
    shared: dict[str, Any] = {
        "K": p.K,
        "tie": p.tie,
        "pad": p.pad,
        "seed": job.seed,
        "weights": job.weights,
    }
    if p.stages > 1:
        return _learn_stages(job, shared), ()
    found = kmeans(job.points, spec=spec.kmeans, **shared)
    code = Code(values=found.codebooks, codes=found.codes)
    return (_pooled(job, code) if p.pool else code), found.stats


def _learn_stages(job: Job, shared: dict[str, Any]) -> Code:
    """Residual k-means, then codebook updates and beam searches in turns (METHODS 4.2, 4.3)."""
    p, spec = job.partition, job.spec
    start = additive.residual_kmeans(job.points, stages=p.stages, spec=spec.kmeans, **shared)
    found = additive.alternate(
        job.points,
        start.codebooks,
        start.codes,
        stages=p.stages,
        tie=p.tie,
        pad=p.pad,
        weights=job.weights,
        spec=additive.AlternateSpec(beam=spec.assignment.beam),
    )
    return Code(values=found.codebooks, codes=found.codes)


def _pooled(job: Job, code: Code) -> Code:
    """Codebooks -> pool and index map, refined on the subvectors (METHODS 1.5, A2, A3)."""
    p, spec = job.partition, job.spec.pool
    usage = usage_of(code.codes, p, job.weights)
    if spec.method == "greedy":
        vectors, index = pool.greedy(code.values, usage, p.pool, spec.tau)
    else:
        vectors, index = pool.wkmeans(code.values, usage, p.pool)
    found = refine(
        job.points,
        vectors,
        index,
        tie=p.tie,
        pad=p.pad,
        rounds=spec.refine,
        weights=job.weights,
    )
    return Code(values=found.pool, codes=found.codes, index=found.index)


def usage_of(codes: Tensor, partition: Partition, weights: Tensor | None = None) -> Tensor:
    """How many subvectors (or how much weight) use each codeword: float64 ``[C, K]``.

    Args:
        codes: int32 ``[groups, points]``, of one stage.
        partition: of the tensor.
        weights: float32 ``[groups, points]`` or None.
    """
    p = partition
    slot = codes.long() + (p.codebook_of_group().to(codes.device) * p.K)[:, None]
    mass = None if weights is None else weights.reshape(-1).double()
    found = torch.bincount(slot.reshape(-1), weights=mass, minlength=p.codebooks * p.K)
    return found.double().view(p.codebooks, p.K)


def rounded(job: Job, code: Code) -> tuple[Code, dict[str, Tensor]]:
    """Codewords as they are stored, in the spec's dtype.

    Returns:
        The code with the values that a reader will see, and the parts that hold them.

    Raises:
        SpecError: a codeword overflows the spec's dtype.
    """
    p, dtype = job.partition, job.spec.codebook_dtype
    name = "pool" if p.pool else "codebooks"
    if dtype == "int8":
        integers, scale = to_int8(code.values)
        parts = {name: integers, "codebook_scale": scale.reshape(-1)}  # a pool has one too
    else:
        parts = {name: code.values.to(getattr(torch, dtype)).contiguous()}
    if not all(bool(torch.isfinite(part).all()) for part in parts.values()):
        raise SpecError(
            f"tensor {job.name!r}: codebooks overflow {dtype}; use codebook_dtype=float32"
        )
    return replace(code, values=stored_values(p, parts)), parts


def nearest(job: Job, code: Code) -> Code:
    """The code with every subvector at its nearest codeword; sums of several stay as they are."""
    p = job.partition
    if p.stages > 1:
        return code  # they were found for codewords that differ by rounding only
    return replace(code, codes=kernels.assign(job.points, code.books, tie=p.tie, pad=p.pad)[0])


def packed(job: Job, code: Code) -> dict[str, Tensor]:
    """Codes and index map as they are stored."""
    p = job.partition
    parts = {"codes": pack(code.codes, p.code_bits)}
    return parts if code.index is None else {**parts, "index_map": pack(code.index, p.index_bits)}
