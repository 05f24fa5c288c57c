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
from dpq_core.methods.pool import selection as pool
from dpq_core.methods.pool.refine import refine
from dpq_core.spec import QuantSpec
from dpq_core.tensor.int8 import to_int8
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import stored_values


@dataclass(frozen=True, kw_only=True)
class QuantizationTask:
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
class Encoding:
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


def learn_encoding(task: QuantizationTask) -> tuple[Encoding, tuple[IterationStats, ...]]:
    """Codebooks by k-means, additive stages, a pool: as the spec has it, without statistics.

    Raises:
        SpecError: weights that are not finite.
    """
    p, spec = task.partition, task.spec
    shared: dict[str, Any] = {"K": p.K, "seed": task.seed, "weights": task.weights}
    if p.stages > 1:
        return _learn_stages(task, shared), ()
    found = kmeans(task.points, p, spec=spec.kmeans, **shared)
    encoding = Encoding(values=found.codebooks, codes=found.codes)
    return (_pooled(task, encoding) if p.pool else encoding), found.stats


def _learn_stages(task: QuantizationTask, shared: dict[str, Any]) -> Encoding:
    """Residual k-means, then codebook updates and beam searches in turns.

    See docs/algorithms.md#residual-kmeans, #beam-search.
    """
    p, spec = task.partition, task.spec
    start = additive.residual_kmeans(task.points, p, spec=spec.kmeans, **shared)
    found = additive.alternate(
        task.points,
        start.codebooks,
        start.codes,
        p,
        weights=task.weights,
        spec=additive.AlternateSpec(beam=spec.assignment.beam),
    )
    return Encoding(values=found.codebooks, codes=found.codes)


def _pooled(task: QuantizationTask, encoding: Encoding) -> Encoding:
    """Codebooks -> pool and index map, refined on the subvectors.

    See docs/algorithms.md#pool, #pool-wkmeans, #pool-refine.
    """
    p, spec = task.partition, task.spec.pool
    usage = codeword_usage(encoding.codes, p, task.weights)
    if spec.method == "greedy":
        vectors, index = pool.greedy(encoding.values, usage, p.pool, spec.tau)
    else:
        vectors, index = pool.wkmeans(encoding.values, usage, p.pool)
    found = refine(task.points, vectors, index, p, rounds=spec.refine, weights=task.weights)
    return Encoding(values=found.pool, codes=found.codes, index=found.index)


def codeword_usage(codes: Tensor, partition: Partition, weights: Tensor | None = None) -> Tensor:
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


def round_codewords(
    task: QuantizationTask, encoding: Encoding
) -> tuple[Encoding, dict[str, Tensor]]:
    """Codewords as they are stored, in the spec's dtype.

    Returns:
        The code with the values that a reader will see, and the parts that hold them.

    Raises:
        SpecError: a codeword overflows the spec's dtype.
    """
    p, dtype = task.partition, task.spec.codebook_dtype
    name = "pool" if p.pool else "codebooks"
    if dtype == "int8":
        integers, scale = to_int8(encoding.values)
        parts = {name: integers, "codebook_scale": scale.reshape(-1)}  # a pool has one too
    else:
        parts = {name: encoding.values.to(getattr(torch, dtype)).contiguous()}
    if not all(bool(torch.isfinite(part).all()) for part in parts.values()):
        raise SpecError(
            f"tensor {task.name!r}: codebooks overflow {dtype}; use codebook_dtype=float32"
        )
    return replace(encoding, values=stored_values(p, parts)), parts


def assign_nearest(task: QuantizationTask, encoding: Encoding) -> Encoding:
    """The code with every subvector at its nearest codeword; sums of several stay as they are."""
    p = task.partition
    if p.stages > 1:
        return encoding  # they were found for codewords that differ by rounding only
    return replace(encoding, codes=kernels.assign(task.points, encoding.books, p)[0])


def pack_codes(task: QuantizationTask, encoding: Encoding) -> dict[str, Tensor]:
    """Codes and index map as they are stored."""
    p = task.partition
    parts = {"codes": pack(encoding.codes, p.code_bits)}
    return (
        parts
        if encoding.index is None
        else {**parts, "index_map": pack(encoding.index, p.index_bits)}
    )
