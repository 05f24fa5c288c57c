"""One tensor: weight -> basis, scales -> subvectors -> codebooks, pool -> codes -> PQTensor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpq_core.methods.codebooks.kmeans import IterationStats
from dpq_core.methods.data_free import (
    QuantizationTask,
    assign_nearest,
    learn_encoding,
    pack_codes,
    round_codewords,
)
from dpq_core.methods.output_aware import InputStatistics, output_error, point_weights
from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.basis.gain import Rows
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import PQTensor, frame_of


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized tensor and how well it went.

    Attributes:
        pq: what is stored.
        relative_error: ||W - W_hat||^2 / ||W||^2, of the stored values.
        output_errors: tr(E H E^T) / tr(W H W^T), H damped, of the nearest codewords and after each
            step of the assignment; empty without statistics.
        stats: one record per k-means iteration.
    """

    pq: PQTensor
    relative_error: float
    output_errors: tuple[float, ...]
    stats: tuple[IterationStats, ...]


def quantize(
    weight: Tensor,
    partition: Partition,
    spec: QuantSpec,
    name: str = "",
    *,
    statistics: InputStatistics | None = None,
) -> Quantized:
    """Quantize one weight: basis, scales, codebooks, pool, assignment.

    See docs/algorithms.md#partition, #assignment.

    Args:
        weight: of ``partition.shape``, any floating dtype, on any device.
        partition: ``Partition.of(weight.shape, layout, spec)``.
        spec: all choices.
        name: of the tensor; mixed into the seed so that equal shapes get different draws.
        statistics: of the layer's inputs; without them every input and row counts alike.

    Raises:
        SpecError: the weight holds NaN or infinite values, or its codebooks overflow the
            spec's ``codebook_dtype``.
    """
    seed, dtype = tensor_seed(spec.seed, name), weight.dtype
    known = statistics or InputStatistics()
    matrix = partition.to_matrix(weight)
    rms = basis.checked_rms(matrix, name)
    stored = basis.choose(matrix, partition, spec, seed, known.hessian)
    if stored:
        matrix = frame_of(partition, stored).rotate(matrix)
        rms = basis.row_rms(matrix)
    if spec.row_scale:
        stored["row_scale"] = _half(rms)
    points = basis.scaled_subvectors(matrix, partition, stored.get("row_scale"))
    del weight, matrix  # often the last references to them: k-means needs only the subvectors
    if spec.group_scale:
        stored["group_scale"] = basis.scale_groups(points)
    frame = frame_of(partition, stored)
    task = QuantizationTask(points=points, partition=partition, spec=spec, seed=seed, name=name)
    task = replace(task, weights=point_weights(task, frame, known))
    output = output_error(task, frame, known)
    encoding, stats = learn_encoding(task)
    errors: tuple[float, ...] = ()
    if output is not None:
        encoding, errors = output.improve(encoding)
    encoding, parts = round_codewords(task, encoding)
    gain: Tensor | None = None
    if output is not None:
        encoding, gain = output.sweep(encoding)
    elif spec.codebook_dtype == "int8":
        encoding = assign_nearest(task, encoding)
    rows = Rows.of(points, encoding.codes, encoding.books, partition, stored)
    before = stored.get("row_scale")
    if before is not None:
        gain = rows.gain() if gain is None else gain
        stored["row_scale"] = _half(before.double() * gain.to(before.device))
    error = rows.relative_error(before, stored.get("row_scale"))
    stored |= parts | pack_codes(task, encoding)
    pq = PQTensor(partition=partition, spec=spec, dtype=dtype, stored=stored)
    return Quantized(pq=pq, relative_error=error, output_errors=errors, stats=stats)


def _half(scale: Tensor) -> Tensor:
    """Scales as they are stored: float16, the largest finite one at most."""
    return scale.clamp(max=torch.finfo(torch.float16).max).half()


def tensor_seed(seed: int, name: str) -> int:
    """A 63-bit seed that depends on the spec's seed and the tensor's name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
