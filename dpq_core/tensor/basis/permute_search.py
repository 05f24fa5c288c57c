"""Stochastic local search over swaps of columns: many disjoint swaps per round, each exact.

With the vector ``[x, 1]`` in place of x, the second moment of a codebook's subvectors is a plain
sum over its groups, and its determinant is that of their covariance. So swaps of disjoint groups
add their changes, and a whole round is judged by small batched Cholesky factorisations in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpq_core.grouping import Grouping

RIDGE = 1e-3
"""Variance added to every coordinate, in mean variances of a column: what a column that hardly
varies saves is bounded, as the distortion that is left anyway bounds it."""

_BATCH = 1 << 21
"""Matrix entries of the candidates that one round evaluates."""

_MARGIN = 1e-12
"""A gain below this share of the cost is rounding."""


class SwapSearch:
    """The objective for orders of the columns, and rounds of swaps that lower it.

    An order is int64 ``[groups, d]``: the columns of each group. Groups j with equal
    ``j // groups_per_codebook`` share a codebook, whose cost is ``groups * |Sigma|^(1/d)``.

    Args:
        mean: of the columns, float64 ``[cols]``.
        covariance: of the columns, ``[cols, cols]``, float32 or float64.
        grouping: subvector length, at most ``cols``, and how many adjacent groups share a codebook.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, grouping: Grouping) -> None:
        self.d = d = grouping.d
        groups = len(mean) // d
        self.sharing = max(1, min(grouping.groups_per_codebook, groups))
        self.books = math.ceil(groups / self.sharing)
        self.unit = max(float(covariance.diagonal().double().mean()), 1e-60)
        self.covariance = covariance
        self.mean = mean.double() / math.sqrt(self.unit)
        device = mean.device
        self.book = torch.arange(groups, device=device) // self.sharing
        self.counts = torch.bincount(self.book, minlength=self.books).double()
        table = torch.arange(self.books * self.sharing, device=device).view(
            self.books, self.sharing
        )
        self.table = torch.where(table < groups, table, -1)  # -1: the last codebook has fewer
        self.ridge = torch.full((d + 1,), RIDGE, dtype=torch.float64, device=device).diag()
        self.ridge[d, d] = 0

    def costs(self, order: Tensor) -> Tensor:
        """Cost of each codebook, float64 ``[books]``, in units of the covariance."""
        return self._cost(self._totals(order), self.counts) * self.unit

    def round(self, order: Tensor, generator: torch.Generator) -> int:
        """Improve ``order`` in place by swaps between disjoint pairs of groups.

        Returns:
            The number of swaps that were evaluated.
        """
        groups, books = self._arenas(generator)  # [A, B, 2], [A, sides]
        old = order[groups]  # [A, B, 2, d]
        new = self._swapped(old, generator)  # [A, B, P, 2, d]
        change = self._moments(new) - self._moments(old)[:, :, None]
        if books.shape[1] == 1:  # both groups use the same codebook
            change = change.sum(dim=3, keepdim=True)
        total, counts = self._totals(order)[books], self.counts[books]
        now = self._cost(total, counts).sum(dim=-1)  # [A]
        cost = self._cost(total[:, None, None] + change, counts[:, None, None]).sum(dim=-1)
        best, pick = cost.min(dim=2)  # [A, B]: the best swap of each pair of groups
        gain = torch.where((groups >= 0).all(dim=2), now[:, None] - best, 0)
        rank = gain.argsort(dim=1, descending=True, stable=True)
        arena = torch.arange(len(groups), device=order.device)[:, None]
        gain, pick, groups = gain[arena, rank], pick[arena, rank], groups[arena, rank]
        gains = gain > _MARGIN * now[:, None]
        change = change[arena, rank, pick] * gains[..., None, None, None]
        # Changes add up: the cost after the r best swaps of an arena together, for every r.
        joint = self._cost(total[:, None] + change.cumsum(dim=1), counts[:, None]).sum(dim=-1)
        last = joint.argmin(dim=1, keepdim=True)
        taken = gains & (torch.arange(gain.shape[1], device=order.device) <= last)
        order[groups[taken]] = new[arena, rank, pick][taken]
        return cost.numel()

    def _arenas(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Disjoint pairs of groups, in arenas that share no codebook.

        Returns:
            Pairs ``[arenas, B, 2]`` of groups (-1: none), and the codebooks ``[arenas, sides]``
            of an arena: two, one for each of a pair, or the one that all its groups use.
        """
        device = self.table.device
        key = torch.rand(self.table.shape, generator=generator, device=device)
        key = torch.where(self.table >= 0, key, 2)  # groups that are none come last
        table = self.table.gather(1, key.argsort(dim=1))
        coin = bool(torch.rand((), generator=generator, device=device) < 0.5)
        if self.books == 1 or (self.sharing > 1 and coin):
            half = self.sharing // 2
            pairs = torch.stack((table[:, :half], table[:, half : 2 * half]), dim=2)
            return pairs, torch.arange(self.books, device=device)[:, None]
        shuffled = torch.randperm(self.books, generator=generator, device=device)
        books = shuffled[: self.books // 2 * 2].view(-1, 2)
        return table[books].movedim(1, 2), books

    def _swapped(self, old: Tensor, generator: torch.Generator) -> Tensor:
        """Pairs of groups ``[A, B, 2, d]`` -> all pairs after one swap, ``[A, B, P, 2, d]``."""
        d, pairs = self.d, old.shape[0] * old.shape[1]
        limit = max(1, _BATCH // max(1, 2 * pairs * (d + 1) ** 2))
        swap = torch.randperm(d * d, generator=generator, device=old.device)[:limit]
        left, right, k = swap // d, swap % d, torch.arange(len(swap), device=old.device)
        new = old[:, :, None].repeat(1, 1, len(swap), 1, 1)
        new[:, :, k, 0, left] = old[:, :, 1, right]
        new[:, :, k, 1, right] = old[:, :, 0, left]
        return new

    def _moments(self, columns: Tensor) -> Tensor:
        """Second moments of ``[x, 1]`` for groups of columns ``[..., d]``: ``[..., d+1, d+1]``."""
        d = self.d
        mean = self.mean[columns]
        out = mean.new_ones(*columns.shape[:-1], d + 1, d + 1)
        inner = self.covariance[columns[..., :, None], columns[..., None, :]].double() / self.unit
        out[..., :d, :d] = inner + mean[..., :, None] * mean[..., None, :]
        out[..., :d, d] = out[..., d, :d] = mean
        return out

    def _totals(self, order: Tensor) -> Tensor:
        """Sum of the moments over the groups of each codebook, ``[books, d+1, d+1]``."""
        zero = self.ridge.new_zeros(self.books, self.d + 1, self.d + 1)
        return zero.index_add_(0, self.book, self._moments(order))

    def _cost(self, total: Tensor, counts: Tensor) -> Tensor:
        """``groups * |Sigma|^(1/d)`` for sums ``[..., d+1, d+1]`` of the moments of ``counts``."""
        average = total / counts[..., None, None] + self.ridge
        factor, info = torch.linalg.cholesky_ex(average)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        return torch.where(info == 0, counts * (log_det / self.d).exp(), torch.inf)
