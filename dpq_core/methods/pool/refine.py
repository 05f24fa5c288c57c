"""Refinement of codes, index map and pool in turns, measured on the subvectors.

See docs/algorithms.md#pool-refine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.nearest import Nearest, nearest
from dpq_core.methods.pool.selection import Clusters

MIN_GAIN = 1e-3
"""Share of the error; a round that gains less is the last."""

RESCUE_SHARE = 0.05
"""Share of the slots of a codebook that are rescued in one round, at most."""


@dataclass(frozen=True, kw_only=True)
class RefineStats:
    """Record of one assignment, before the pool is updated.

    Attributes:
        objective: weighted mean squared distance per subvector, to the nearest of its codebook.
        moved: subvectors whose code changed.
        empty: slots of the index map without (weighted) subvectors.
        unused: pool vectors without (weighted) subvectors.
        seconds: wall time.
    """

    objective: float
    moved: int
    empty: int
    unused: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RefinedPool:
    """A pool, its index map, and the nearest codewords in exactly this pool.

    Attributes:
        pool: float32 [V, d].
        index: int32 [B, K], the pool vector of each slot.
        codes: int32 [G, P].
        stats: one record per assignment; the last one is of ``codes``.
    """

    pool: Tensor
    index: Tensor
    codes: Tensor
    stats: tuple[RefineStats, ...]


def refine(
    subvectors: Tensor,
    pool: Tensor,
    index: Tensor,
    grouping: Grouping | None = None,
    *,
    rounds: int = 6,
    weights: Tensor | None = None,
) -> RefinedPool:
    """Lower the error of a pool in rounds; the objective never rises.

    A round assigns the subvectors to the K codewords of their codebook, points each slot (entry of
    the index map) to the pool vector nearest to the mean of its subvectors, moves each pool vector
    to the mean of all its subvectors, and points slots without subvectors to the pool vectors
    nearest to the worst served subvectors. A last assignment follows; with ``rounds=0`` it is all.

    Args:
        subvectors: float32 [G, d, P].
        pool: float32 [V, d].
        index: integer [B, K] < V.
        grouping: grouping of the subvectors; None gives every group its own codebook.
        rounds: at most; see MIN_GAIN.
        weights: float32 [G, P] or [1, P], not negative; None weighs all subvectors alike.

    Raises:
        SpecError: shapes do not fit.
    """
    grouping = grouping or Grouping.of_subvectors(subvectors.shape)
    if weights is not None:
        weights = weights.to(subvectors).expand(len(subvectors), -1)
    passes = _Passes(subvectors, grouping, index.shape[1], weights)
    index = index.long()
    stats: list[RefineStats] = []
    search: Nearest | None = None
    while True:
        begin = time.perf_counter()
        slots = passes.step(pool[index])
        used = slots.weight.sum(1) > 0
        used_vectors = torch.zeros(len(pool), dtype=torch.bool, device=pool.device)
        used_vectors[index.view(-1)[used]] = True
        gained = not stats or slots.objective < (1 - MIN_GAIN) * stats[-1].objective
        last = len(stats) == rounds or not gained
        if not last:
            pool, index, search = _update(slots, pool, index, search)
            _rescue(passes, used.view_as(index), pool, index)
        stats.append(
            RefineStats(
                objective=slots.objective,
                moved=slots.moved,
                empty=int((~used).sum()),
                unused=int((~used_vectors).sum()),
                seconds=time.perf_counter() - begin,
            )
        )
        if last:
            return RefinedPool(
                pool=pool, index=index.int(), codes=passes.codes(), stats=tuple(stats)
            )


@dataclass(frozen=True)
class _Slots:
    """Sums over the subvectors of each slot, an entry of the index map; n = B K.

    Attributes:
        total: float64 [n, d], sum w x.
        weight: float64 [n, d], sum w; coordinates of padding add nothing.
        objective: weighted mean squared distance of the assignment.
        moved: codes that changed.
    """

    total: Tensor
    weight: Tensor
    objective: float
    moved: int


class _Passes:
    """Repeated assignments of the same subvectors, with a padded last group taken separately."""

    def __init__(
        self, subvectors: Tensor, grouping: Grouping, K: int, weights: Tensor | None
    ) -> None:
        self.subvectors, self.weights, self.grouping = subvectors, weights, grouping
        G, d, _ = subvectors.shape
        pad = grouping.pad
        full = G - (pad > 0)
        cuts = [(slice(0, full), d, grouping.groups_per_codebook)] if full else []
        if pad:
            cuts.append((slice(full, G), d - pad, 1))
        self.parts = []
        for groups, used, groups_per_codebook in cuts:
            part = subvectors[groups, :used]
            passes = kernels.lloyd(
                part,
                Grouping.of_subvectors(part.shape, groups_per_codebook=groups_per_codebook),
                K=K,
                weights=None if weights is None else weights[groups],
            )
            first = groups.start // grouping.groups_per_codebook
            codebooks = slice(first, -(-groups.stop // grouping.groups_per_codebook))
            self.parts.append((passes, codebooks, used))
        moments = [passes.moments() for passes, _, _ in self.parts]
        self.energy = sum(float(m[:, (m.shape[1] // 2) : -1].sum()) for m in moments)
        self.mass = sum(float(m[:, -1].sum()) for m in moments) or 1.0

    def step(self, books: Tensor) -> _Slots:
        """Assign to codebooks float32 [B, K, d] and sum the subvectors of each slot."""
        total = torch.zeros(books.shape, dtype=torch.float64, device=books.device)
        weight = torch.zeros_like(total)
        moved = 0
        for passes, part, used in self.parts:
            changed, sums = passes.step(books[part, :, :used].contiguous())
            total[part, :, :used] += sums[..., :used]
            weight[part, :, :used] += sums[..., used : used + 1]
            moved += changed
        # sum w |x - c|^2 = sum w |x|^2 + sum c (W c - 2 sum w x), without a pass over the points
        cross = (books.double() * (weight * books - 2 * total)).sum()
        objective = max(0.0, self.energy + float(cross)) / self.mass
        d = books.shape[2]
        return _Slots(total.view(-1, d), weight.view(-1, d), objective, moved)

    def codes(self) -> Tensor:
        """The codes of the last assignment, int32 [G, P]."""
        codes = [passes.result() for passes, _, _ in self.parts]
        return codes[0] if len(codes) == 1 else torch.cat(codes)

    def worst(self, codewords: Tensor, codes: Tensor, codebook: int, count: int) -> Tensor:
        """The subvectors [count, d] of one codebook, codewords [K, d], that cost most."""
        groups_per_codebook, pad = self.grouping.groups_per_codebook, self.grouping.pad
        groups = slice(codebook * groups_per_codebook, (codebook + 1) * groups_per_codebook)
        x = self.subvectors[groups]  # [groups of the codebook, d, P]
        error = x - codewords[codes[groups].long()].movedim(2, 1)
        if pad and groups.stop >= len(self.subvectors):
            error[-1, x.shape[1] - pad :] = 0
        cost = error.square().sum(1)
        if self.weights is not None:
            cost = cost * self.weights[groups]
        place = cost.view(-1).argsort(descending=True, stable=True)[:count]
        return x[place // x.shape[2], :, place % x.shape[2]]


def _update(
    slots: _Slots, pool: Tensor, index: Tensor, search: Nearest | None
) -> tuple[Tensor, Tensor, Nearest]:
    """Pool and index map fitted to the means of the slots; ``search`` is reused for its order."""
    flat = index.view(-1)
    # A slot without subvectors weighs nothing, and stays.
    means = torch.where(slots.weight > 0, (slots.total / slots.weight).float(), pool[flat])
    if search is None:
        search = Nearest(means)
    search.move(means)
    clusters = Clusters(search, pool, flat)
    clusters.iterate(means, slots.weight)
    return clusters.pool, clusters.index.view_as(index), search


def _rescue(passes: _Passes, used: Tensor, pool: Tensor, index: Tensor) -> None:
    """Point unused slots, in place, to the pool vectors nearest to the worst served subvectors.

    Args:
        passes: the passes whose last assignment ``used`` describes.
        used: bool [B, K], slots with subvectors.
        pool: float32 [V, d].
        index: int64 [B, K].
    """
    limit = max(1, int(RESCUE_SHARE * index.shape[1]))
    rescued = ~used & ((~used).cumsum(1) <= limit)
    counts = rescued.sum(1).tolist()
    if any(counts):
        codes = passes.codes()
        targets = [
            passes.worst(pool[index[codebook]], codes, codebook, count)
            for codebook, count in enumerate(counts)
            if count
        ]
        index[rescued] = nearest(torch.cat(targets), pool)[0]  # in the order of ``rescued``
