"""Prediction of a spec's relative error on a weight, from a sample of its subvectors.

Two small k-means give the error at two codebook sizes; in between and beyond, the error of a
codebook of K words in d dimensions falls as ``K^(-2 s / d)`` (high-rate quantization theory has
s = 1), and s is fitted to the two sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.methods.quantize import tensor_seed
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.partition import Partition

SAMPLE = 8192
"""Number of sampled subvectors; three quarters of them are for training."""

SIZES = (32, 256)
"""Numbers of codewords of the two small codebooks."""

_KMEANS = KMeansSpec(iterations=6, tail=1)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The relative error as a function of the size of a shared codebook, for one d.

    Attributes:
        d: subvector length.
        K: the larger size that was measured.
        error: relative error at that size.
        slope: fall of log2(error) per bit of code.
    """

    d: int
    K: int
    error: float
    slope: float

    def at(self, K: int) -> float:
        """The relative error with K codewords."""
        return float(self.error * 2 ** (-self.slope * (math.log2(K) - math.log2(self.K))))


def curve(matrix: Tensor, partition: Partition, spec: QuantSpec, name: str) -> Curve:
    """The error curve of one weight, measured on a sample of its subvectors.

    Args:
        matrix: ``[R, C]``, any floating dtype.
        partition: gives d and the axis that is cut.
        spec: gives the scales and the seed.
        name: name of the tensor, mixed into the seed.
    """
    generator = torch.Generator().manual_seed(tensor_seed(spec.seed, f"{name}:{partition.d}"))
    points = _sample(matrix, partition, spec, generator)
    count = points.shape[2]
    train, test = points[..., : count * 3 // 4], points[..., count * 3 // 4 :]
    energy = float(test.square().mean()) or 1.0
    errors = []
    for K in SIZES:
        size = min(K, max(2, train.shape[2] // 2))
        books = kmeans(train.contiguous(), K=size, spec=_KMEANS, seed=0).codebooks
        distance = kernels.assign(test.contiguous(), books)[1]
        errors.append(max(float(distance.mean()) / partition.d / energy, 1e-9))
    bits = math.log2(SIZES[1] / SIZES[0])
    slope = min(max(math.log2(errors[0] / errors[1]) / bits, 0.0), 2.0 / partition.d)
    return Curve(d=partition.d, K=SIZES[1], error=errors[1], slope=slope)


def _sample(matrix: Tensor, p: Partition, spec: QuantSpec, generator: torch.Generator) -> Tensor:
    """Scaled subvectors of random rows and groups, float32 ``[1, d, n]``, shuffled."""
    along = matrix if p.orientation == "input" else matrix.T
    rows = torch.randperm(len(along), generator=generator)[: max(1, min(len(along), 1024))]
    whole = along.shape[1] // p.d or 1
    groups = torch.randperm(whole, generator=generator)[: max(1, -(-SAMPLE // len(rows)))]
    chosen = along[rows.to(along.device)].float()
    if spec.row_scale and p.orientation == "input":
        chosen = chosen / basis.divisor(chosen.square().mean(1).sqrt())[:, None]
    if chosen.shape[1] < p.d:
        chosen = torch.nn.functional.pad(chosen, (0, p.d - chosen.shape[1]))
    cut = chosen[:, : whole * p.d].view(len(rows), whole, p.d)[:, groups.to(chosen.device)]
    points = cut.reshape(-1, p.d)
    order = torch.randperm(len(points), generator=generator)[:SAMPLE]
    return points[order.to(points.device)].T[None].contiguous()
