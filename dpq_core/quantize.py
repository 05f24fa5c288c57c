"""Stage 1 for one tensor: weight -> scales -> subvectors -> k-means -> PQTensor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.kernels.error import weighted_error
from dpq_core.kmeans import IterationStats, kmeans
from dpq_core.packing import pack
from dpq_core.partition import Partition
from dpq_core.pq_tensor import PQTensor
from dpq_core.spec import QuantSpec

_CHUNK = 1 << 20
"""Elements that are widened to float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized tensor and how well it went.

    Attributes:
        pq: what is stored.
        relative_error: ||W - W_hat||^2 / ||W||^2, of the stored values.
        stats: one record per k-means iteration.
    """

    pq: PQTensor
    relative_error: float
    stats: tuple[IterationStats, ...]


def quantize(weight: Tensor, partition: Partition, spec: QuantSpec, name: str = "") -> Quantized:
    """Quantize one weight as it is, without data (METHODS 1.1-1.4, 1.6).

    Args:
        weight: of ``partition.shape``, any floating dtype, on any device.
        partition: ``Partition.of(weight.shape, layout, spec)``.
        spec: all choices.
        name: of the tensor; mixed into the seed so that equal shapes get different draws.

    Raises:
        SpecError: the weight holds NaN or infinite values, or its codebooks overflow the
            spec's ``codebook_dtype``.
    """
    matrix = partition.to_matrix(weight)
    rms = _row_rms(matrix)
    if not bool(torch.isfinite(rms).all()):
        raise SpecError(f"tensor {name!r} holds NaN or infinite values; repair the checkpoint")
    scale = rms.clamp(max=torch.finfo(torch.float16).max).half() if spec.row_scale else None
    points = _scaled_subvectors(matrix, partition, scale)
    dtype = weight.dtype
    del weight, matrix  # often the last references to it: k-means needs only the subvectors
    result = kmeans(
        points,
        K=partition.K,
        tie=partition.tie,
        pad=partition.pad,
        spec=spec.kmeans,
        seed=tensor_seed(spec.seed, name),
    )
    pq = PQTensor(
        partition=partition,
        dtype=dtype,
        codes=pack(result.codes, partition.code_bits),
        codebooks=_cast(result.codebooks, spec.codebook_dtype, name),
        row_scale=scale,
    )
    error = relative_error(points, result.codes, pq)
    return Quantized(pq=pq, relative_error=error, stats=result.stats)


def tensor_seed(seed: int, name: str) -> int:
    """A 63-bit seed that depends on the spec's seed and the tensor's name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def relative_error(points: Tensor, codes: Tensor, pq: PQTensor) -> float:
    """||W - W_hat||^2 / ||W||^2 from scaled subvectors ``[groups, d, points]`` and their codes."""
    p = pq.partition
    scale = torch.ones(p.rows) if pq.row_scale is None else _divisor(pq.row_scale).cpu()
    along = torch.zeros(p.groups * p.d, dtype=torch.float64)  # of the cut axis; the pad counts 0
    squares = scale.double().square()
    if p.orientation == "input":
        along[: p.cols] = 1
        by_point = squares
    else:
        along[: p.rows] = squares
        by_point = torch.ones(p.points, dtype=torch.float64)
    lost, total = weighted_error(
        points,
        codes,
        pq.codebooks.float(),
        tie=p.tie,
        by_point=by_point,
        by_coordinate=along.view(p.groups, p.d),
    )
    return lost / total if total else 0.0


def _row_rms(matrix: Tensor) -> Tensor:
    """Root mean square of each row, float64 ``[rows]``, a few rows at a time."""
    step = max(1, _CHUNK // max(1, matrix.shape[1]))
    squares = [chunk.double().square().mean(dim=1) for chunk in torch.split(matrix, step)]
    return torch.cat(squares).sqrt()


def _scaled_subvectors(matrix: Tensor, partition: Partition, scale: Tensor | None) -> Tensor:
    """Float32 subvectors ``[groups, d, points]`` of the rows over their scales.

    Cut in the original dtype and scaled in place, so that one float32 copy exists, not three.
    """
    p = partition
    points = p.to_subvectors(matrix).to(torch.float32, copy=True)
    if scale is None:
        return points
    if p.orientation == "input":
        return points.div_(_divisor(scale))
    divisor = torch.nn.functional.pad(_divisor(scale), (0, p.pad), value=1.0)
    return points.div_(divisor.view(p.groups, p.d, 1))


def _divisor(scale: Tensor) -> Tensor:
    """The scales as float32 divisors ``[rows]``: zero rows are divided by one."""
    values = scale.float()
    return torch.where(values == 0, 1.0, values)


def _cast(codebooks: Tensor, dtype: str, name: str) -> Tensor:
    stored = codebooks.to(getattr(torch, dtype))
    if not bool(torch.isfinite(stored).all()):
        raise SpecError(f"tensor {name!r}: codebooks overflow {dtype}; use codebook_dtype=float32")
    return stored.contiguous()
