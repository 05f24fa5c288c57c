"""Stochastic local search over swaps of columns, many disjoint swaps per round.

With the vector ``[x, 1]`` in place of x, the second moment of a codebook's subvectors is a plain
sum over its groups, and its determinant is that of their covariance. So swaps of disjoint groups
add their changes, and a round is evaluated by small batched Cholesky factorisations in float64.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from dpq_core.grouping import Grouping

RIDGE = 1e-3
"""Variance added to every coordinate, in mean variances of a column.

It bounds what a column that hardly varies saves, as the remaining distortion bounds it.
"""

_BATCH = 1 << 21
"""Matrix entries of all candidate swaps that one round evaluates, at most."""

_MARGIN = 1e-12
"""Share of the cost below which a gain may be rounding."""


class SwapSearch:
    """The cost of orders of the columns, and rounds of swaps that lower it.

    An order is int64 ``[G, d]``: the columns of each full group. The cost of a codebook is the
    number of its groups times ``|Sigma|^(1/d)``.

    Args:
        mean: mean of each column, float64 ``[C]``.
        covariance: covariance of the columns, ``[C, C]``, float32 or float64.
        grouping: length of a subvector, at most C, and groups per codebook.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, grouping: Grouping) -> None:
        self.d = d = grouping.d
        groups = len(mean) // d
        self.groups_per_codebook = max(1, min(grouping.groups_per_codebook, groups))
        self.codebooks = math.ceil(groups / self.groups_per_codebook)
        self.unit = max(float(covariance.diagonal().double().mean()), 1e-60)
        self.covariance = covariance
        self.mean = mean.double() / math.sqrt(self.unit)
        device = mean.device
        self.codebook_of_group = torch.arange(groups, device=device) // self.groups_per_codebook
        counts = torch.bincount(self.codebook_of_group, minlength=self.codebooks)
        self.counts = counts.double()  # groups of each codebook
        shape = (self.codebooks, self.groups_per_codebook)
        table = torch.arange(math.prod(shape), device=device).view(shape)
        self.table = torch.where(table < groups, table, -1)  # -1: the last codebook has fewer
        self.ridge = torch.full((d + 1,), RIDGE, dtype=torch.float64, device=device).diag()
        self.ridge[d, d] = 0

    def costs(self, order: Tensor) -> Tensor:
        """Cost of each codebook, float64 ``[B]``, in units of the covariance."""
        return self._cost(self._totals(order), self.counts) * self.unit

    @cached_property
    def never_drawn(self) -> Tensor:
        """Pairs of groups that no round draws, bool ``[G, G]``, symmetric."""
        of = self.codebook_of_group
        half = self.groups_per_codebook // 2  # pairs of a codebook are drawn from two such halves
        within = (self.counts > half)[of][:, None] & (half > 0)
        drawn = torch.where(of[:, None] == of, within, self.codebooks > 1)
        return (~drawn).fill_diagonal_(True)

    def skip(self, generator: torch.Generator) -> int:
        """Draw what a round draws and evaluate nothing; returns how many swaps it would have."""
        groups, _ = self._arenas(generator)
        pairs = groups.shape[0] * groups.shape[1]
        return pairs * len(self._swaps(pairs, generator))

    def round(
        self, order: Tensor, generator: torch.Generator, settled: Tensor | None = None
    ) -> int:
        """Improve ``order`` in place by swaps between disjoint pairs of groups.

        Args:
            order: columns of each group, int64 ``[G, d]``.
            generator: where the pairs and their swaps are drawn from.
            settled: pairs of groups that are never drawn, or that no swap improves while their
                codebooks stay as they are, bool ``[G, G]``, symmetric; kept up to date in place.

        Returns:
            The number of swaps that were evaluated.
        """
        groups, codebooks = self._arenas(generator)  # [A, N, 2], [A, sides]
        old = order[groups]  # [A, N, 2, d]
        swaps = self._swaps(groups.shape[0] * groups.shape[1], generator)
        new = self._swapped(old, swaps)  # [A, N, M, 2, d]
        change = self._moments(new) - self._moments(old)[:, :, None]
        if codebooks.shape[1] == 1:  # both groups use the same codebook
            change = change.sum(dim=3, keepdim=True)
        total, counts = self._totals(order)[codebooks], self.counts[codebooks]
        now = self._cost(total, counts).sum(dim=-1)  # [A]
        cost = self._cost(total[:, None, None] + change, counts[:, None, None]).sum(dim=-1)
        best, pick = cost.min(dim=2)  # [A, N]: the best swap of each pair of groups
        gain = torch.where((groups >= 0).all(dim=2), now[:, None] - best, 0)
        rank = gain.argsort(dim=1, descending=True, stable=True)
        arena = torch.arange(len(groups), device=order.device)[:, None]
        gain, pick, groups = gain[arena, rank], pick[arena, rank], groups[arena, rank]
        gains = gain > _MARGIN * now[:, None]
        change = change[arena, rank, pick] * gains[..., None, None, None]
        # Changes add up: the cost after the r best swaps of an arena together, for every r.
        joint = self._cost(total[:, None] + change.cumsum(dim=1), counts[:, None]).sum(dim=-1)
        last = joint.argmin(dim=1, keepdim=True)
        accepted = gains & (torch.arange(gain.shape[1], device=order.device) <= last)
        order[groups[accepted]] = new[arena, rank, pick][accepted]
        if settled is not None and len(swaps) == self.d**2:
            changed = accepted.any(dim=1)  # [A]
            left, right = groups[~changed].flatten(0, 1).unbind(dim=1)
            both = (left >= 0) & (right >= 0)
            settled[left[both], right[both]] = settled[right[both], left[both]] = True
            moved = torch.isin(self.codebook_of_group, codebooks[changed])
            settled[moved] = self.never_drawn[moved]
            settled[:, moved] = self.never_drawn[:, moved]
        return cost.numel()

    def _arenas(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw disjoint pairs of groups, in A arenas that share no codebook.

        Returns:
            N pairs of groups per arena, int64 ``[A, N, 2]`` (-1: none), and the codebooks of an
            arena, int64 ``[A, sides]``: one for each group of a pair, or one that all groups use.
        """
        device = self.table.device
        key = torch.rand(self.table.shape, generator=generator, device=device)
        key = torch.where(self.table >= 0, key, 2)  # groups that are none come last
        table = self.table.gather(1, key.argsort(dim=1))
        coin = bool(torch.rand((), generator=generator, device=device) < 0.5)
        if self.codebooks == 1 or (self.groups_per_codebook > 1 and coin):
            half = self.groups_per_codebook // 2
            pairs = torch.stack((table[:, :half], table[:, half : 2 * half]), dim=2)
            return pairs, torch.arange(self.codebooks, device=device)[:, None]
        shuffled = torch.randperm(self.codebooks, generator=generator, device=device)
        codebooks = shuffled[: self.codebooks // 2 * 2].view(-1, 2)
        return table[codebooks].movedim(1, 2), codebooks

    def _swaps(self, pairs: int, generator: torch.Generator) -> Tensor:
        """M swaps of coordinates ``left * d + right`` to try in every pair, int64 ``[M]``."""
        d = self.d
        limit = max(1, _BATCH // max(1, 2 * pairs * (d + 1) ** 2))
        return torch.randperm(d * d, generator=generator, device=self.table.device)[:limit]

    def _swapped(self, old: Tensor, swaps: Tensor) -> Tensor:
        """Pairs of groups ``[A, N, 2, d]`` after each of M swaps: ``[A, N, M, 2, d]``."""
        d = self.d
        left, right, k = swaps // d, swaps % d, torch.arange(len(swaps), device=old.device)
        new = old[:, :, None].repeat(1, 1, len(swaps), 1, 1)
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
        """Sums of the moments over the groups of each codebook, ``[B, d+1, d+1]``."""
        zero = self.ridge.new_zeros(self.codebooks, self.d + 1, self.d + 1)
        return zero.index_add_(0, self.codebook_of_group, self._moments(order))

    def _cost(self, total: Tensor, counts: Tensor) -> Tensor:
        """Cost of codebooks from sums ``[..., d+1, d+1]`` of the moments of ``counts`` groups."""
        average = total / counts[..., None, None] + self.ridge
        factor, info = torch.linalg.cholesky_ex(average)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        return torch.where(info == 0, counts * (log_det / self.d).exp(), torch.inf)
