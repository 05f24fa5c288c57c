"""Gaussian statistics of features and the Frechet distance between two of them.

The distance of FID (Heusel et al. 2017, equation 6) is
``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))``. With ``C1 = L L^T`` the product ``C1 C2``
has the eigenvalues of the symmetric ``L^T C2 L``, so the last trace is a sum of real square roots:
never complex, and several times faster than a matrix square root.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError


@dataclass(frozen=True)
class Gaussian:
    """The mean and covariance of features, in float64.

    Attributes:
        mean: ``[D]``.
        covariance: ``[D, D]``, unbiased (divided by ``count - 1``).
        count: how many feature vectors it was estimated from; None where a file does not say.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.mean.ndim != 1 or self.covariance.shape != (d, d):
            raise SpecError(
                f"a mean of shape {list(self.mean.shape)} and a covariance of shape "
                f"{list(self.covariance.shape)} do not belong together; expected [D] and [D, D]"
            )
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise SpecError("the mean or covariance of features holds NaN or infinity")


class GaussianAccumulator:
    """A running mean and covariance of feature batches, in the memory of one covariance.

    Batches are merged by the update of Chan, Golub and LeVeque (1979): no sum of raw squares,
    hence no cancellation when the mean is large against the spread.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)  # [D]
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # [D, D], sum of outer products

    def update(self, features: Tensor) -> None:
        """Add features ``[n, D]``.

        Raises:
            SpecError: wrong shape, another D than before, NaN or infinity.
        """
        batch = features.detach().to("cpu", torch.float64)
        if batch.ndim != 2:
            raise SpecError(f"features have shape {list(batch.shape)}; expected [N, D]")
        if not batch.isfinite().all():
            raise SpecError("the extractor returned NaN or infinite features")
        n, d = batch.shape
        if n == 0:
            return
        if self.count == 0:
            self._mean = torch.zeros(d, dtype=torch.float64)
            self._scatter = torch.zeros(d, d, dtype=torch.float64)
        elif d != len(self._mean):
            raise SpecError(f"features have {d} dimensions, earlier ones {len(self._mean)}")
        total = self.count + n
        mean = batch.mean(0)
        delta = mean - self._mean
        centred = batch - mean
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(delta, delta, alpha=self.count * n / total)
        self._mean += delta * (n / total)
        self.count = total

    def result(self) -> Gaussian:
        """The statistics of all features so far.

        Raises:
            SpecError: fewer than two feature vectors, which have no covariance.
        """
        if self.count < 2:
            raise SpecError(f"{self.count} images have no covariance; give at least 2")
        return Gaussian(self._mean.clone(), self._scatter / (self.count - 1), self.count)


def gaussian(features: Tensor) -> Gaussian:
    """Mean and covariance of features ``[N, D]``.

    Raises:
        SpecError: fewer than two, wrong shape, NaN or infinity.
    """
    accumulator = GaussianAccumulator()
    accumulator.update(features)
    return accumulator.result()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared 2-Wasserstein distance of two Gaussians; 0 for equal ones up to rounding.

    Raises:
        SpecError: they have different dimensions.
    """
    if len(a.mean) != len(b.mean):
        raise SpecError(
            f"statistics of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared; "
            "use the same feature extractor for both"
        )
    offset = (a.mean - b.mean).square().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    root = _trace_of_root(_symmetric(a.covariance), _symmetric(b.covariance))
    return max(0.0, (offset + traces - 2 * root).item())


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _trace_of_root(a: Tensor, b: Tensor) -> Tensor:
    """``tr((A B)^(1/2))`` of two positive semidefinite matrices ``[D, D]``.

    The usual remedy for singular covariances (fewer images than dimensions) is to add 1e-6 to
    their diagonals, which shifts the distance and depends on the scale of the features. Instead
    the matrix that has a Cholesky factor is factored; where neither has one, the factor comes
    from an eigendecomposition, exact for any rank. Rounding leaves an error of about
    ``1e-8 tr(A)`` for singular matrices and ``1e-13 tr(A)`` otherwise.
    """
    for one, other in ((a, b), (b, a)):
        factor, failed_at = torch.linalg.cholesky_ex(one)
        if failed_at == 0:
            return _sum_of_roots(factor, other)
    values, vectors = torch.linalg.eigh(a)
    return _sum_of_roots(vectors * values.clamp_min(0).sqrt(), b)


def _sum_of_roots(factor: Tensor, matrix: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(_symmetric(factor.T @ matrix @ factor))
    total: Tensor = values.clamp_min(0).sqrt().sum()
    return total
