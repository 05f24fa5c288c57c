"""Codebooks, pool and codes of one tensor's subvectors, before they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpq_core import additive, kernels, pool
from dpq_core.errors import SpecError
from dpq_core.int8 import to_int8
from dpq_core.kmeans import IterationStats, kmeans
from dpq_core.packing import pack
from dpq_core.partition import Partition
from dpq_core.pool_refine import refine
from dpq_core.pq_tensor import effective_books
from dpq_core.spec import QuantSpec


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
    shared = {"K": p.K, "tie": p.tie, "pad": p.pad, "seed": job.seed, "weights": job.weights}
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


def stored_values(job: Job, values: Tensor) -> dict[str, Tensor]:
    """Codebooks or pool in the spec's dtype, with their scale where that is int8.

    Raises:
        SpecError: a value overflows the dtype.
    """
    dtype = job.spec.codebook_dtype
    name = "pool" if job.partition.pool else "codebooks"
    if dtype == "int8":
        integers, scale = to_int8(values)
        return {name: integers, "codebook_scale": scale}
    stored = values.to(getattr(torch, dtype))
    if not bool(torch.isfinite(stored).all()):
        raise SpecError(
            f"tensor {job.name!r}: codebooks overflow {dtype}; use codebook_dtype=float32"
        )
    return {name: stored.contiguous()}


def settle(job: Job, code: Code) -> tuple[Tensor, dict[str, Tensor]]:
    """Round the codewords as they are stored, and pack the codes.

    Codewords in eight bits move so far that codes of a single stage are chosen anew.

    Returns:
        The codes, int32 ``[stages * groups, points]``, and the stored parts.

    Raises:
        SpecError: a codeword overflows the spec's dtype.
    """
    p, codes = job.partition, code.codes
    parts = stored_values(job, code.values)
    if code.index is not None:
        parts["index_map"] = pack(code.index, p.index_bits)
    if job.spec.codebook_dtype == "int8" and p.stages == 1:
        books = effective_books(p, parts)
        codes = kernels.assign(job.points, books, tie=p.tie, pad=p.pad)[0]
    parts["codes"] = pack(codes, p.code_bits)
    return codes, parts
