"""Forecast of the time and memory of a plan, from its sizes and a measured speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from dpq_core import kernels
from dpq_core.tensor.plan import Plan, TensorPlan

_POINTS = 1 << 16
_SIZES = (4, 256)  # d, K of the trial

_LIBRARIES = 450_000_000
"""Memory of torch and the kernels alone, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Time and memory of one process that compresses without data.

    Attributes:
        seconds: wall time.
        peak_memory: peak of the resident memory in bytes.
    """

    seconds: float
    peak_memory: int


def forecast(plan: Plan) -> Forecast:
    """The forecast of a plan, whose time is that of k-means at this machine's speed."""
    work = sum(_distances(tensor) for tensor in plan)
    peak = max((_memory(tensor) for tensor in plan), default=0)
    return Forecast(seconds=work / _speed() if work else 0.0, peak_memory=_LIBRARIES + peak)


def _distances(tensor: TensorPlan) -> int:
    """Number of multiply-adds of all passes of k-means over a tensor."""
    if tensor.spec is None or tensor.partition is None:
        return 0
    p, kmeans = tensor.partition, tensor.spec.kmeans
    passes = kmeans.iterations + kmeans.tail + 1
    return p.groups * p.points * p.K * p.d * p.stages * passes


def _memory(tensor: TensorPlan) -> int:
    """Memory of a tensor, its float32 subvectors, codes and distances, in bytes."""
    if tensor.partition is None:
        return tensor.info.nbytes
    p = tensor.partition
    return tensor.info.nbytes + 4 * tensor.info.numel + 12 * p.stages * p.groups * p.points


def _speed() -> float:
    """Multiply-adds per second of nearest-codeword search, in the second of two small passes."""
    d, K = _SIZES
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, d, _POINTS, generator=generator)
    passes = kernels.lloyd(points, K=K)
    seconds = 1.0
    for _ in range(2):
        started = time.perf_counter()
        passes.step(torch.randn(1, K, d, generator=generator))
        seconds = time.perf_counter() - started
    return _POINTS * K * d / seconds
