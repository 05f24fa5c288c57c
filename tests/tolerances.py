"""How far two floating-point results of the same sums may lie apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LAMBDA = 8.0
"""Standard deviations of the rounding error of a sum that are allowed; one in 10^13 is beyond."""


def sum_error(dtype: torch.dtype, length: int) -> float:
    """Rounding error of a sum of ``length`` products, relative to the sum of their magnitudes.

    Every BLAS adds the terms of a product of matrices in an order of its own, which depends on the
    processor, the shapes and the number of threads. With rounding errors of at most u = eps / 2
    each, a sum in any order lies within ``n u`` of the exact one, relative to the sum of the
    magnitudes of its terms (Higham, "Accuracy and Stability of Numerical Algorithms", section
    3.1); as rounding errors are nearly independent of each other with mean zero, it lies within
    ``LAMBDA sqrt(n) u`` with a probability of at least ``1 - 2 exp(-LAMBDA^2 / 2)`` (Higham and
    Mary, SIAM J. Sci. Comput. 41, 2019, theorem 2.4). The smaller of both is returned.

    Args:
        dtype: in which the terms are added up.
        length: n, the number of terms.
    """
    unit = torch.finfo(dtype).eps / 2
    return min(length, LAMBDA * math.sqrt(length)) * unit


def assert_same_sums(
    found: Tensor, expected: Tensor, *, length: int, magnitude: Tensor | float
) -> None:
    """Compare two results of the same sums, each with a rounding error of its own.

    Args:
        found: of any shape and floating dtype, in which its sums were added up.
        expected: of the same shape and dtype.
        length: number of terms of each sum, those of sums inside the terms included.
        magnitude: of each sum: what the magnitudes of its terms add up to, or more (by the
            inequality of Cauchy and Schwarz the product of the norms of the two factors).
    """
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    bound = 2 * sum_error(found.dtype, length) * torch.as_tensor(magnitude, dtype=torch.float64)
    excess = (found.detach().double() - expected.detach().double()).abs() / bound.clamp_min(1e-300)
    assert float(excess.max()) <= 1, f"{float(excess.max()):.3g} times the error of rounding"
