"""How long a plan will take and how much memory: from its sizes and a measured speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from dpq_core import kernels
from dpq_core.tensor.plan import Plan, TensorPlan

_POINTS = 1 << 16
_SIZES = (4, 256)  # d, K of the trial

_LIBRARIES = 450_000_000
"""Bytes that torch and the kernels take by themselves."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one process, data-free.

    Attributes:
        seconds: wall time.
        peak_memory: resident bytes.
    """

    seconds: float
    peak_memory: int


def forecast(plan: Plan) -> Forecast:
    """Time is that of the distances of k-means, at the speed of one small trial on this machine."""
    work = sum(_distances(tensor) for tensor in plan)
    peak = max((_memory(tensor) for tensor in plan), default=0)
    return Forecast(seconds=work / _speed() if work else 0.0, peak_memory=_LIBRARIES + peak)


def _distances(tensor: TensorPlan) -> int:
    """Multiply-adds of all passes of k-means."""
    if tensor.spec is None or tensor.partition is None:
        return 0
    p, kmeans = tensor.partition, tensor.spec.kmeans
    passes = kmeans.iterations + kmeans.tail + 1
    return p.groups * p.points * p.K * p.d * p.stages * passes


def _memory(tensor: TensorPlan) -> int:
    """The tensor, its float32 subvectors, the codes and their distances."""
    if tensor.partition is None:
        return tensor.info.nbytes
    p = tensor.partition
    return tensor.info.nbytes + 4 * tensor.info.numel + 12 * p.stages * p.groups * p.points


def _speed() -> float:
    """Multiply-adds of nearest-codeword search per second, of the second of two small passes."""
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
