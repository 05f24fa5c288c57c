"""Greedy orders of the columns, from which a search starts.

See PQF, section 3.2; docs/algorithms.md#permutation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def correlated_start(covariance: Tensor, groups: int, d: int) -> Tensor:
    """Correlated columns meet in one group, for groups with a codebook of their own.

    Each group begins with the column of the largest variance that is left, and takes, one by one,
    the column of which the group already explains the largest share.

    Args:
        covariance: ``[cols, cols]``, ``cols >= groups * d``; only the first columns are used.
        groups: how many groups to fill.
        d: columns per group.

    Returns:
        The columns of each group, int64 ``[groups, d]``.
    """
    used = groups * d
    variance = covariance.diagonal()[:used].clone()
    floor = variance.mean() * torch.finfo(variance.dtype).eps
    taken = torch.zeros(used, dtype=torch.bool, device=variance.device)
    order = torch.empty(used, dtype=torch.int64, device=variance.device)
    for group in range(groups):
        factor = covariance.new_zeros(d, used)  # rows of the group's Cholesky factor
        left = variance.clone()
        for k in range(d):
            share = -variance if k == 0 else left / (variance + floor)
            column = share.masked_fill(taken, torch.inf).argmin()
            order[group * d + k] = column
            taken[column] = True
            row = covariance[column, :used] - factor[:, column] @ factor
            factor[k] = row / (left[column] + floor).sqrt()
            left = (left - factor[k].square()).clamp_min(0)
    return order.view(groups, d)


def bucket_start(covariance: Tensor, groups: int, d: int) -> Tensor:
    """Groups that look alike, for a shared codebook: coordinate b takes the b-th share of ranks.

    The columns in order of falling variance fill one coordinate of all groups after the other.
    For uncorrelated columns this minimises the product of the coordinates' average variances.

    Args:
        covariance: ``[cols, cols]``, ``cols >= groups * d``; only the first columns are used.
        groups: how many groups to fill.
        d: columns per group.

    Returns:
        The columns of each group, int64 ``[groups, d]``.
    """
    variance = covariance.diagonal()[: groups * d]
    return variance.argsort(descending=True, stable=True).view(d, groups).T.contiguous()
