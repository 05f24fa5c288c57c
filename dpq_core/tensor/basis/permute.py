"""Column permutations that make a matrix easier to quantize (PQF, arXiv 2010.15703, section 3.2).

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

_RACE = 8
"""Every start gets this fraction (1 / 8) of all swaps; the best one gets the rest."""

_MIN_GAIN = 1e-6
"""Relative gain below which the columns keep their order."""


@dataclass(frozen=True, kw_only=True)
class ColumnMoments:
    """Mean and covariance of the columns of a matrix ``[R, C]``: what the search works on.

    Attributes:
        mean: mean of each column over the rows, float64 ``[C]``.
        covariance: covariance of the columns over the rows, float32 or float64 ``[C, C]``.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """A permutation of the columns, and what the search for it gained.

    Attributes:
        perm: int64 ``[C]``; column i of the permuted matrix is column ``perm[i]``.
        before: objective of the given order.
        after: objective of ``perm``, never above ``before``.
        swaps: candidate swaps that were drawn.
    """

    perm: Tensor
    before: float
    after: float
    swaps: int


def column_moments(matrix: Tensor, importance: Tensor | None = None) -> ColumnMoments:
    """Mean and covariance of the columns of a matrix ``[R, C]``.

    Args:
        matrix: any floating dtype.
        importance: weight of a squared error in each column, ``[C]``, not negative, such as the
            diagonal of the layer's H; None weighs all columns alike.
    """
    values = matrix.to(torch.float32)
    if importance is not None:
        values = values * importance.to(values).sqrt()
    mean = values.mean(dim=0, dtype=torch.float64)
    centred = values - mean.float()
    return ColumnMoments(mean=mean, covariance=centred.T @ centred / len(values))


def objective(moments: ColumnMoments, perm: Tensor, grouping: Grouping) -> float:
    """The objective of an order of the columns: sum over the full groups of ``|Sigma|^(1/d)``.

    Sigma is the covariance of all subvectors of a group's codebook: the average of the covariances
    of its groups plus that of the groups' means. Its diagonal is raised by
    ``permute_search.RIDGE``.
    """
    search = SwapSearch(moments.mean, moments.covariance, grouping)
    return float(search.costs(_full_groups(perm, grouping.d)).sum())


@one_torch_thread()
def search(
    moments: ColumnMoments, grouping: Grouping, *, swaps: int = 100_000, seed: int = 0
) -> Permutation:
    """Search a permutation: greedy starts, then stochastic local search over swaps of two columns.

    See PQF, arXiv 2010.15703, section 3.2, and docs/algorithms.md#permutation.

    A round draws disjoint pairs of groups and accepts the best swap of each pair where it lowers
    the objective, which therefore never rises. Where the columns do not fill the last group, its
    columns stay where they are. If nothing is gained the permutation is the identity.

    Args:
        moments: moments of the matrix as it will be quantized (scaled, weighted).
        grouping: subvector length, and how many adjacent groups share a codebook.
        swaps: candidate swaps to draw; the last rounds may exceed it, and a search that ends where
            no swap improves the order draws fewer.
        seed: the only source of randomness.

    Raises:
        SpecError: the moments are not finite.
    """
    d = grouping.d
    if not bool(torch.isfinite(moments.covariance).all() & torch.isfinite(moments.mean).all()):
        raise SpecError("the columns to permute hold NaN or infinite values")
    identity = torch.arange(len(moments.mean), device=moments.mean.device)
    given = _full_groups(identity, d)
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
    done += _descend(local, order, swaps - done, generator, is_last=True)
    after = float(local.costs(order).sum())
    if after > before * (1 - _MIN_GAIN):
        return Permutation(perm=identity, before=before, after=before, swaps=done)
    perm = torch.cat([order.flatten(), identity[order.numel() :]])
    return Permutation(perm=perm, before=before, after=after, swaps=done)


def _descend(
    local: SwapSearch,
    order: Tensor,
    swaps: int,
    generator: torch.Generator,
    *,
    is_last: bool = False,
) -> int:
    """Improve ``order`` in place until ``swaps`` were drawn; returns how many swaps it were.

    Where no swap improves the order any more, rounds are drawn without being evaluated, so that the
    next start draws what it would have drawn; the last start ends there.
    """
    groups, d = order.shape
    pays = groups * (groups - 1) // 2 * d**2 < swaps  # all pairs of groups can be tried
    settled = local.never_drawn.clone() if pays else None
    done = 0
    while done < swaps:
        if settled is None or not settled.all():
            done += local.round(order, generator, settled)
        elif is_last:
            break
        else:
            done += local.skip(generator)
    return done


def _full_groups(perm: Tensor, d: int) -> Tensor:
    """The columns of each full group, int64 ``[G, d]``."""
    groups = len(perm) // d
    return perm[: groups * d].view(groups, d)


def correlated_start(covariance: Tensor, groups: int, d: int) -> Tensor:
    """A greedy order in which correlated columns meet in one group, for a codebook per group.

    Each group begins with the column of the largest remaining variance, and takes, one by one, the
    column of which the group already explains the largest share.

    Args:
        covariance: ``[C, C]``, C >= G d; only the first G d columns are used.
        groups: G, groups to fill.
        d: columns of a group.

    Returns:
        The columns of each group, int64 ``[G, d]``.
    """
    used = groups * d
    variance = covariance.diagonal()[:used].clone()
    floor = variance.mean() * torch.finfo(variance.dtype).eps
    is_placed = torch.zeros(used, dtype=torch.bool, device=variance.device)
    order = torch.empty(used, dtype=torch.int64, device=variance.device)
    for group in range(groups):
        factor = covariance.new_zeros(d, used)  # rows of the group's Cholesky factor
        unexplained = variance.clone()
        for k in range(d):
            share = -variance if k == 0 else unexplained / (variance + floor)
            column = share.masked_fill(is_placed, torch.inf).argmin()
            order[group * d + k] = column
            is_placed[column] = True
            row = covariance[column, :used] - factor[:, column] @ factor
            factor[k] = row / (unexplained[column] + floor).sqrt()
            unexplained = (unexplained - factor[k].square()).clamp_min(0)
    return order.view(groups, d)


def bucket_start(covariance: Tensor, groups: int, d: int) -> Tensor:
    """A greedy order in which all groups look alike, for groups that share a codebook.

    The columns, in order of falling variance, fill the first coordinate of all groups, then the
    second, and so on.
    For uncorrelated columns this minimises the product of the coordinates' average variances.

    Args:
        covariance: ``[C, C]``, C >= G d; only the first G d columns are used.
        groups: G, groups to fill.
        d: columns of a group.

    Returns:
        The columns of each group, int64 ``[G, d]``.
    """
    variance = covariance.diagonal()[: groups * d]
    return variance.argsort(descending=True, stable=True).view(d, groups).T.contiguous()
