"""One tensor: weight -> basis, scales -> subvectors -> codebooks, pool -> codes -> PQTensor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dpq_core import basis
from dpq_core.errors import SpecError
from dpq_core.kernels.error import weighted_error
from dpq_core.kmeans import IterationStats
from dpq_core.learn import Job, learn, nearest, packed, rounded
from dpq_core.outputs import InputStatistics, output_error, point_weights
from dpq_core.partition import Partition
from dpq_core.pq_tensor import PQTensor, frame_of
from dpq_core.spec import QuantSpec


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
    """Quantize one weight (METHODS 1.1-1.7): basis, scales, codebooks, pool, assignment.

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
    rms = basis.row_rms(matrix)
    if not bool(torch.isfinite(rms).all()):
        raise SpecError(f"tensor {name!r} holds NaN or infinite values; repair the checkpoint")
    stored = basis.choose(matrix, partition, spec, seed, known.hessian)
    if stored:
        matrix = frame_of(partition, stored).rotate(matrix)
        rms = basis.row_rms(matrix)
    if spec.row_scale:
        stored["row_scale"] = rms.clamp(max=torch.finfo(torch.float16).max).half()
    points = basis.scaled_subvectors(matrix, partition, stored.get("row_scale"))
    del weight, matrix  # often the last references to them: k-means needs only the subvectors
    if spec.group_scale:
        stored["group_scale"] = basis.scale_groups(points)
    frame = frame_of(partition, stored)
    job = Job(points=points, partition=partition, spec=spec, seed=seed, name=name)
    job = replace(job, weights=point_weights(job, frame, known))
    output = output_error(job, frame, known)
    code, stats = learn(job)
    errors: tuple[float, ...] = ()
    if output is not None:
        code, errors = output.improve(code)
    code, parts = rounded(job, code)
    if output is not None:
        code = output.sweep(code)
    elif spec.codebook_dtype == "int8":
        code = nearest(job, code)
    stored |= parts | packed(job, code)
    pq = PQTensor(partition=partition, spec=spec, dtype=dtype, stored=stored)
    error = relative_error(points, code.codes, pq)
    return Quantized(pq=pq, relative_error=error, output_errors=errors, stats=stats)


def tensor_seed(seed: int, name: str) -> int:
    """A 63-bit seed that depends on the spec's seed and the tensor's name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def relative_error(points: Tensor, codes: Tensor, pq: PQTensor) -> float:
    """||W - W_hat||^2 / ||W||^2 from scaled subvectors ``[groups, d, points]`` and their codes."""
    p = pq.partition
    scale = torch.ones(p.rows)
    if "row_scale" in pq.stored:
        scale = basis.divisor(pq.stored["row_scale"]).cpu()
    along = torch.zeros(p.groups, p.d, dtype=torch.float64)  # of the cut axis; the pad counts 0
    squares = scale.double().square()
    if p.orientation == "input":
        along.view(-1)[: p.cols] = 1
        by_point = squares
    else:
        along.view(-1)[: p.rows] = squares
        by_point = torch.ones(p.points, dtype=torch.float64)
    if "group_scale" in pq.stored:
        along *= basis.divisor(pq.stored["group_scale"]).cpu().double().square()[:, None]
    books, by_stage = pq.books().chunk(p.stages), codes.chunk(p.stages)
    weigh = partial(weighted_error, tie=p.tie, by_point=by_point, by_coordinate=along)
    rest = points
    for stage in range(p.stages - 1):
        book = books[stage].repeat_interleave(p.tie, 0)[: p.groups]  # [groups, K, d]
        index = by_stage[stage].long()[..., None].expand(-1, -1, p.d)
        rest = rest - book.gather(1, index).transpose(1, 2)
    lost, total = weigh(rest, by_stage[-1], books[-1])
    if p.stages > 1:
        zero = torch.zeros_like(books[-1])
        total = weigh(points, by_stage[-1], zero)[1]
    return lost / total if total else 0.0
