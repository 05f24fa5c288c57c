"""Codebooks, pool and codes of one tensor's subvectors, learned without statistics of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import SpecError
from dpq_core.methods.additive import stages as additive
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.methods.pool import selection as pool
from dpq_core.methods.pool.refine import refine
from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis.gain import RowProducts
from dpq_core.tensor.int8 import to_int8
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import stored_values


@dataclass(frozen=True, kw_only=True)
class QuantizationTask:
    """The scaled subvectors of one tensor, and all choices for quantizing them.

    Attributes:
        subvectors: float32 ``[G, d, P]``.
        partition: all sizes.
        spec: all choices.
        seed: the only source of randomness.
        name: name of the tensor, for messages.
        weights: how much each subvector counts, float32 ``[G, P]``; None counts all alike.
    """

    subvectors: Tensor
    partition: Partition
    spec: QuantSpec
    seed: int
    name: str
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Codes and codewords of the subvectors of one tensor.

    Attributes:
        codewords: float32, the codebooks ``[S*B, K, d]`` or, with ``index_map``, the pool
            ``[V, d]``.
        codes: int32 ``[S*G, P]``.
        index_map: the pool vector of every codeword, int32 ``[S*B, K]``; None without a pool.
    """

    codewords: Tensor
    codes: Tensor
    index_map: Tensor | None = None

    @property
    def codebooks(self) -> Tensor:
        """The codebooks, float32 ``[S*B, K, d]``, read through the pool where there is one."""
        return self.codewords if self.index_map is None else self.codewords[self.index_map.long()]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The encoding of one weight as it is stored.

    Attributes:
        parts: the parts that hold codes and codewords, by name.
        products: inner products of the rows of the core and of its reconstruction.
        gain: gain of every row measured on outputs, float64 ``[R]``; None where there are no
            statistics.
        errors: see ``Quantized.output_errors``.
    """

    parts: Mapping[str, Tensor]
    products: RowProducts
    gain: Tensor | None
    errors: tuple[float, ...]


def learn_encoding(task: QuantizationTask) -> Encoding:
    """Learn codebooks by k-means, and additive stages or a pool where the spec asks for them.

    Raises:
        SpecError: the weights of the subvectors are not finite.
    """
    p, spec = task.partition, task.spec
    arguments: dict[str, Any] = {
        "K": p.K,
        "spec": spec.kmeans,
        "seed": task.seed,
        "weights": task.weights,
    }
    if p.stages > 1:
        return _learn_stages(task, arguments)
    result = kmeans(task.subvectors, p, **arguments)
    encoding = Encoding(codewords=result.codebooks, codes=result.codes)
    return _pooled(task, encoding) if p.pool else encoding


def _learn_stages(task: QuantizationTask, arguments: dict[str, Any]) -> Encoding:
    """Additive codebooks: residual k-means, then codebook updates and beam searches in turns.

    See docs/algorithms.md#residual-kmeans, #additive-fit.
    """
    p, spec = task.partition, task.spec
    start = additive.residual_kmeans(task.subvectors, p, **arguments)
    result = additive.alternate(
        task.subvectors,
        start.codebooks,
        start.codes,
        p,
        weights=task.weights,
        spec=additive.AlternateSpec(beam=spec.assignment.beam),
    )
    return Encoding(codewords=result.codebooks, codes=result.codes)


def _pooled(task: QuantizationTask, encoding: Encoding) -> Encoding:
    """The encoding with its codebooks replaced by a pool and an index map, refined on subvectors.

    See docs/algorithms.md#pool, #pool-refine.
    """
    p, spec = task.partition, task.spec.pool
    usage = codeword_usage(encoding.codes, p, task.weights)
    if spec.method == "greedy":
        vectors, index_map = pool.greedy(encoding.codewords, usage, p.pool, spec.tau)
    else:
        vectors, index_map = pool.wkmeans(encoding.codewords, usage, p.pool)
    result = refine(
        task.subvectors, vectors, index_map, p, rounds=spec.refine, weights=task.weights
    )
    return Encoding(codewords=result.pool, codes=result.codes, index_map=result.index)


def codeword_usage(codes: Tensor, partition: Partition, weights: Tensor | None = None) -> Tensor:
    """Number of subvectors (or sum of their weights) that use each codeword: float64 ``[B, K]``.

    Args:
        codes: int32 ``[G, P]``, of one stage.
        partition: partition of the tensor.
        weights: float32 ``[G, P]``; None weighs all subvectors alike.
    """
    p = partition
    slot = codes.long() + (p.codebook_of_group().to(codes.device) * p.K)[:, None]
    mass = None if weights is None else weights.reshape(-1).double()
    usage = torch.bincount(slot.reshape(-1), weights=mass, minlength=p.codebooks * p.K)
    return usage.double().view(p.codebooks, p.K)


def round_codewords(
    task: QuantizationTask, encoding: Encoding
) -> tuple[Encoding, dict[str, Tensor]]:
    """Round codewords to the dtype in which they are stored.

    Returns:
        The encoding with the codewords that a reader will see, and the parts that hold them.

    Raises:
        SpecError: a codeword overflows the spec's dtype.
    """
    p, dtype = task.partition, task.spec.codebook_dtype
    name = "pool" if p.pool else "codebooks"
    if dtype == "int8":
        integers, scale = to_int8(encoding.codewords)
        parts = {name: integers, "codebook_scale": scale.reshape(-1)}  # a pool has one too
    else:
        parts = {name: encoding.codewords.to(getattr(torch, dtype)).contiguous()}
    if not all(bool(torch.isfinite(part).all()) for part in parts.values()):
        raise SpecError(
            f"tensor {task.name!r}: codebooks overflow {dtype}; use codebook_dtype=float32"
        )
    return replace(encoding, codewords=stored_values(p, parts)), parts


def assign_nearest(task: QuantizationTask, encoding: Encoding) -> Encoding:
    """The encoding with every subvector at its nearest codeword; additive codes stay."""
    p = task.partition
    if p.stages > 1:
        return encoding  # its codes suit codewords that differ by rounding only
    return replace(encoding, codes=kernels.assign(task.subvectors, encoding.codebooks, p)[0])


def pack_codes(task: QuantizationTask, encoding: Encoding) -> dict[str, Tensor]:
    """Codes and index map as they are stored, by the name of their part."""
    p = task.partition
    parts = {"codes": pack(encoding.codes, p.code_bits)}
    if encoding.index_map is not None:
        parts["index_map"] = pack(encoding.index_map, p.index_bits)
    return parts
