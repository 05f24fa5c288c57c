"""Column permutations that make a matrix easier to quantise (PQF, arXiv 2010.15703, section 3.2).

For Gaussian subvectors with covariance Sigma, K codewords leave a distortion of about
``d K^(-2/d) |Sigma|^(1/d)``. So the search lowers the sum of ``|Sigma|^(1/d)`` over the codebooks:
where each group of columns has its own codebook, correlated columns should meet in one group
(docs/algorithms.md#permutation); where groups share one, all of them should look alike, coordinate
by coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.threads import one_torch_thread
from dpq_core.tensor.basis.permute_search import SwapSearch
from dpq_core.tensor.basis.permute_start import bucket_start, correlated_start

_RACE = 8
"""Every start gets this part of all swaps."""

_NO_GAIN = 1e-6
"""A smaller relative gain is not worth another order of the columns."""


@dataclass(frozen=True, kw_only=True)
class ColumnMoments:
    """All that the search knows of a matrix ``[rows, cols]``.

    Attributes:
        mean: of each column over the rows, float64 ``[cols]``.
        covariance: of the columns over the rows, float32 or float64 ``[cols, cols]``.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """The outcome of a search.

    Attributes:
        perm: int64 ``[cols]``; column i of the permuted matrix is column ``perm[i]``.
        before: objective of the given order.
        after: objective of ``perm``, never above ``before``.
        swaps: candidate swaps that were evaluated.
    """

    perm: Tensor
    before: float
    after: float
    swaps: int


def column_moments(matrix: Tensor, importance: Tensor | None = None) -> ColumnMoments:
    """Moments of the columns of ``matrix [rows, cols]``.

    Args:
        matrix: any floating dtype.
        importance: not negative, ``[cols]``, such as the diagonal of the layer's H: a squared
            error in column c counts ``importance[c]`` times. None: all columns count alike.
    """
    values = matrix.to(torch.float32)
    if importance is not None:
        values = values * importance.to(values).sqrt()
    mean = values.mean(dim=0, dtype=torch.float64)
    centred = values - mean.float()
    return ColumnMoments(mean=mean, covariance=centred.T @ centred / len(values))


def objective(moments: ColumnMoments, perm: Tensor, grouping: Grouping) -> float:
    """Sum over the full groups of their codebook's ``|Sigma|^(1/d)``, for the order ``perm``.

    Sigma is the covariance of all subvectors of a codebook: the average of the covariances of its
    groups plus that of the groups' means; its diagonal is raised by ``permute_search.RIDGE``.
    """
    search = SwapSearch(moments.mean, moments.covariance, grouping)
    return float(search.costs(_groups(perm, grouping.d)).sum())


@one_torch_thread()
def search(
    moments: ColumnMoments, grouping: Grouping, *, swaps: int = 100_000, seed: int = 0
) -> Permutation:
    """Greedy starts, then stochastic local search over swaps of two columns (PQF, section 3.2).

    A round draws disjoint pairs of groups and accepts the best swap of each pair where it lowers
    the objective, which therefore never rises. Where the columns do not fill the last group, its
    columns stay where they are. If nothing is gained the permutation is the identity.

    Args:
        moments: of the matrix as it will be quantised (scaled, weighted).
        grouping: subvector length, and how many adjacent groups share a codebook.
        swaps: candidate swaps to evaluate; a few rounds may exceed it.
        seed: the only source of randomness.

    Raises:
        SpecError: the moments are not finite.
    """
    d = grouping.d
    if not bool(torch.isfinite(moments.covariance).all() & torch.isfinite(moments.mean).all()):
        raise SpecError("the columns to permute hold NaN or infinite values")
    identity = torch.arange(len(moments.mean), device=moments.mean.device)
    given = _groups(identity, d)
    local = SwapSearch(moments.mean, moments.covariance, grouping)
    before = float(local.costs(given).sum())
    if len(given) < 2 or d == 1:  # d = 1: a codebook of single columns has no coordinates to mix
        return Permutation(perm=identity, before=before, after=before, swaps=0)
    orders = [given.clone()] + [
        start(moments.covariance, len(given), d) for start in (correlated_start, bucket_start)
    ]
    generator = torch.Generator(identity.device).manual_seed(seed)
    # Each start may lead to a poor local minimum: all of them race, the best one goes on.
    done = sum(_descend(local, order, swaps // _RACE, generator) for order in orders)
    order = min(orders, key=lambda order: float(local.costs(order).sum()))
    done += _descend(local, order, swaps - done, generator)
    after = float(local.costs(order).sum())
    if after > before * (1 - _NO_GAIN):
        return Permutation(perm=identity, before=before, after=before, swaps=done)
    perm = torch.cat([order.flatten(), identity[order.numel() :]])
    return Permutation(perm=perm, before=before, after=after, swaps=done)


def _descend(local: SwapSearch, order: Tensor, swaps: int, generator: torch.Generator) -> int:
    """Rounds on ``order``, in place, until ``swaps`` were evaluated; returns how many it were."""
    done = 0
    while done < swaps:
        done += local.round(order, generator)
    return done


def _groups(perm: Tensor, d: int) -> Tensor:
    """The columns of each full group, int64 ``[groups, d]``."""
    groups = len(perm) // d
    return perm[: groups * d].view(groups, d)
