"""Quantization of one weight, step by step: basis, scales, subvectors, codebooks, codes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpq_core.methods.data_free import (
    Encoded,
    QuantizationTask,
    assign_nearest,
    learn_encoding,
    pack_codes,
    round_codewords,
)
from dpq_core.methods.output_aware import (
    InputStatistics,
    corrected,
    output_optimizer,
    point_weights,
)
from dpq_core.methods.trellis.encode import encode as encode_trellis
from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.basis.gain import RowProducts
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import PQTensor, frame_of


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized tensor and its errors.

    Attributes:
        pq: the stored parts.
        relative_error: ||W - W_hat||^2 / ||W||^2 of what is stored.
        output_errors: tr(E H E^T) / tr(W H W^T) with E = W - W_hat and damped H: of the nearest
            codewords, then after each step of the assignment; empty without statistics.
    """

    pq: PQTensor
    relative_error: float
    output_errors: tuple[float, ...]


def quantize(
    weight: Tensor,
    partition: Partition,
    spec: QuantSpec,
    name: str = "",
    *,
    statistics: InputStatistics | None = None,
) -> Quantized:
    """Quantize one weight: basis, scales, codebooks, pool, assignment.

    See docs/algorithms.md, from #partition to #assignment.

    Args:
        weight: tensor of ``partition.shape``, any floating dtype, on any device.
        partition: ``Partition.of(weight.shape, layout, spec)``.
        spec: all choices.
        name: name of the tensor, mixed into the seed so that equal shapes get different draws.
        statistics: statistics of the layer's inputs; None: every input and row counts alike.

    Raises:
        SpecError: the weight holds NaN or infinite values, or its codebooks overflow the
            spec's ``codebook_dtype``.
    """
    seed, dtype = tensor_seed(spec.seed, name), weight.dtype
    statistics = statistics or InputStatistics()
    original = None if statistics.drift is None else weight
    matrix = corrected(partition.to_matrix(weight), statistics, spec.assignment.damping)
    rms = basis.checked_rms(matrix, partition, name)
    stored = basis.choose(matrix, partition, spec, seed, statistics.hessian)
    if stored:
        matrix = frame_of(partition, stored).rotate(matrix)
        rms = basis.row_rms(matrix)
    if spec.row_scale:
        stored["row_scale"] = _half(rms)
    subvectors = basis.scaled_subvectors(matrix, partition, stored.get("row_scale"))
    del weight, matrix  # often the last references to them: k-means needs only the subvectors
    if partition.row_bits:
        encoded = encode_trellis(subvectors, partition, spec, stored, statistics)
    else:
        if spec.group_scale:
            stored["group_scale"] = basis.scale_groups(subvectors)
        task = QuantizationTask(
            subvectors=subvectors, partition=partition, spec=spec, seed=seed, name=name
        )
        encoded = _encode(task, stored, statistics)
    stored |= encoded.parts
    products, row_scale = encoded.products, stored.get("row_scale")
    if row_scale is not None:
        gain = products.gain() if encoded.gain is None else encoded.gain
        stored["row_scale"] = _half(row_scale.double() * gain.to(row_scale.device))
    error = products.relative_error(row_scale, stored.get("row_scale"))
    pq = PQTensor(partition=partition, spec=spec, dtype=dtype, stored=stored)
    if original is not None:
        error = _relative_error(original, pq)
    return Quantized(pq=pq, relative_error=error, output_errors=encoded.errors)


def _encode(
    task: QuantizationTask, stored: dict[str, Tensor], statistics: InputStatistics
) -> Encoded:
    """Encode the subvectors of one weight by learned codebooks.

    Args:
        task: the subvectors, and all choices.
        stored: parts that hold basis and scales.
        statistics: statistics of the layer's inputs.
    """
    frame = frame_of(task.partition, stored)
    task = replace(task, weights=point_weights(task, frame, statistics))
    optimizer = output_optimizer(task, frame, statistics)
    encoding = learn_encoding(task)
    errors: tuple[float, ...] = ()
    if optimizer is not None:
        encoding, errors = optimizer.improve(encoding)
    encoding, parts = round_codewords(task, encoding)
    gain: Tensor | None = None
    if optimizer is not None:
        encoding, gain = optimizer.sweep(encoding)
    elif task.spec.codebook_dtype == "int8":
        encoding = assign_nearest(task, encoding)
    return Encoded(
        parts=parts | pack_codes(task, encoding),
        products=RowProducts.of(
            task.subvectors, encoding.codes, encoding.codebooks, task.partition, stored
        ),
        gain=gain,
        errors=errors,
    )


def _relative_error(weight: Tensor, pq: PQTensor) -> float:
    """||W - W_hat||^2 / ||W||^2; 0 for a weight of zeros that is kept."""
    error = (pq.decode(torch.float32) - weight.float()).double().square().sum()
    return float(error / weight.double().square().sum().clamp(min=1e-300))


def _half(scale: Tensor) -> Tensor:
    """Scales rounded to float16, the largest finite one at most."""
    return scale.clamp(max=torch.finfo(torch.float16).max).half()


def tensor_seed(seed: int, name: str) -> int:
    """A 63-bit seed that depends only on the spec's seed and the tensor's name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
