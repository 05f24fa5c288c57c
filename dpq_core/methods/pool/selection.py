"""Choice of the pool: the vectors that stand for all codewords of a tensor.

Instead of codebooks ``[B, K, d]`` a tensor stores a pool ``[V, d]`` and, for each codeword, the
index of its pool vector (docs/algorithms.md#pool). ``greedy`` builds the pool as the paper
describes it, ``wkmeans`` by minimising the error that the pool adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.kernels.cpu.nearest import Nearest, nearest
from dpq_core.kernels.cpu.threads import spread
from dpq_core.spec.sections import MAX_POOL

SCAN = 1024
"""Codewords of one block of the greedy scan, compared with each other at once."""

CELL = 128
"""Vectors of one cell, merged among themselves; the time of a pass is proportional to it."""

MERGE_PASSES = 2
"""Passes of merging, over differently cut cells, so that few neighbours stay apart."""

MIN_GAIN = 1e-3
"""Share of the error; a round of k-means that gains less is the last."""


def greedy(codebooks: Tensor, usage: Tensor, size: int, tau: float) -> tuple[Tensor, Tensor]:
    """A pool of the most used codewords that are farther than ``tau`` apart.

    The paper leaves metric and remainder open (docs/algorithms.md#pool): ``tau`` is relative to the
    usage-weighted root mean square norm, equal usage goes to the larger norm, and where fewer
    than ``size`` codewords are that far apart, the most used of the others fill the pool.

    Args:
        codebooks: float32 [B, K, d].
        usage: number of subvectors that use each codeword, [B, K].
        size: V, vectors of the pool.
        tau: least distance of two pool vectors.

    Returns:
        The pool float32 [V, d], most used first, and int32 [B, K], the nearest pool vector of
        each codeword.

    Raises:
        SpecError: ``size`` is more than there are codewords or an index can name, or shapes or
            values do not fit.
    """
    vectors, weight = _flat(codebooks, usage, size)
    if not tau >= 0:
        raise SpecError(f"pool tau must be at least 0, not {tau}")
    squares = vectors.double().square().sum(1)
    total = float(weight.sum())
    scale = float((weight * squares).sum() / total) if total else float(squares.mean())
    order = squares.argsort(descending=True, stable=True)
    order = order[weight[order].argsort(descending=True, stable=True)]
    accepted = _apart(vectors[order], size, tau * tau * scale)[:size]
    if len(accepted) < size:
        is_left_out = torch.ones(len(order), dtype=torch.bool)
        is_left_out[accepted] = False
        fillers = is_left_out.nonzero()[: size - len(accepted), 0]
        accepted = torch.cat([accepted, fillers]).sort().values
    pool = vectors[order[accepted.to(order.device)]]
    index = nearest(vectors, pool)[0]
    return pool, index.int().view(codebooks.shape[:2])


def _apart(vectors: Tensor, size: int, squared: float) -> Tensor:
    """Places, int64, of the vectors farther than a distance from all accepted before them."""
    accepted = torch.empty(0, dtype=torch.int64)
    for start in range(0, len(vectors), SCAN):
        block = vectors[start : start + SCAN]
        far = torch.ones(len(block), dtype=torch.bool)
        if len(accepted):
            far = (nearest(block, vectors[accepted.to(block.device)])[1] > squared).cpu()
        places = far.nonzero()[:, 0]
        close = _within(block.cpu()[places], squared).numpy()
        is_accepted = np.ones(len(close), bool)
        for i in range(len(close)):
            if is_accepted[i]:
                is_accepted[i + 1 :] &= ~close[i, i + 1 :]
        accepted = torch.cat([accepted, start + places[torch.from_numpy(is_accepted)]])
        if len(accepted) >= size:
            break
    return accepted


def _within(vectors: Tensor, squared: float) -> Tensor:
    """Whether pairs of float32 [n, d] are within a squared distance of each other: bool [n, n]."""
    total = torch.zeros(len(vectors), len(vectors))
    for column in vectors.T:
        total += (column[:, None] - column).square()
    return total <= squared


def wkmeans(
    codebooks: Tensor, usage: Tensor, size: int, *, iterations: int = 2
) -> tuple[Tensor, Tensor]:
    """A pool by usage-weighted k-means of the codewords (docs/algorithms.md#pool-wkmeans).

    A codeword is the mean of its subvectors, so ``sum usage |c - pool[index]|^2`` is exactly what
    the pool adds to the squared error. There are only some two to ten codewords per pool vector:
    k-means from sampled starts stays 10 to 50 % above what merging the cheapest pairs first
    reaches (Equitz 1989), so merging is the start here, and a few iterations follow.

    Args:
        codebooks: float32 [B, K, d].
        usage: [B, K], not negative; codewords without use take their nearest pool vector.
        size: V, vectors of the pool.
        iterations: iterations of k-means, at most.

    Returns:
        The pool float32 [V, d] and int32 [B, K], the nearest pool vector of each codeword.

    Raises:
        SpecError: as in ``greedy``.
    """
    vectors, weight = _flat(codebooks, usage, size)
    used = weight > 0
    if int(used.sum()) <= size:  # all that are used, and as many of the others as fit
        order = (~used).to(torch.uint8).argsort(stable=True)
        pool = vectors[order[:size]]
        index = nearest(vectors, pool)[0]
        return pool, index.int().view(codebooks.shape[:2])
    points, mass = vectors[used], weight[used]
    clusters = Clusters(Nearest(points), *merged(points, mass, size))
    before = math.inf
    for _ in range(iterations):
        cost = clusters.iterate(points, mass[:, None].expand_as(points))
        if cost > (1 - MIN_GAIN) * before:
            break
        before = cost
    pool, index = clusters.pool, torch.empty_like(used, dtype=torch.int64)
    index[used] = clusters.search(pool, guess=clusters.index)[0]
    if not bool(used.all()):
        index[~used] = nearest(vectors[~used], pool)[0]
    return pool, index.int().view(codebooks.shape[:2])


@dataclass
class Clusters:
    """Clusters of vectors around pool vectors.

    Attributes:
        search: nearest-centre search over the vectors, float32 [n, d], given to ``iterate``.
        pool: float32 [V, d].
        index: the pool vector of each vector, int64 [n].
    """

    search: Nearest
    pool: Tensor
    index: Tensor

    def iterate(self, vectors: Tensor, weight: Tensor) -> float:
        """One iteration of k-means with a weight per coordinate; the error never rises.

        Each vector moves to the nearest pool vector where that lowers its error; pool vectors
        become weighted means; those without members take in the vectors that cost most.

        Args:
            vectors: float32 [n, d].
            weight: float64 [n, d]. Equal over the coordinates of a vector, apart from padding.

        Returns:
            The error sum weight (vector - pool)^2, before the pool vectors moved.
        """
        near = self.search(self.pool, guess=self.index)[0]
        old_cost, new_cost = (self._cost(vectors, weight, to) for to in (self.index, near))
        self.index = torch.where(new_cost < old_cost, near, self.index)
        cost = torch.minimum(new_cost, old_cost)
        self._move_to_means(vectors, weight)
        empty = (torch.bincount(self.index, minlength=len(self.pool)) == 0).nonzero()[:, 0]
        if len(empty):
            costs = self._cost(vectors, weight, self.index)  # zero for a member alone
            costly = costs.argsort(descending=True, stable=True)[: len(empty)]
            costly = costly[costs[costly] > 0]
            self.index[costly] = empty[: len(costly)]
            self._move_to_means(vectors, weight)
        return float(cost.sum())

    def _move_to_means(self, vectors: Tensor, weight: Tensor) -> None:
        """Move every pool vector with members to their weighted mean."""
        total, mass = self._sums(weight * vectors), self._sums(weight)
        self.pool = torch.where(mass > 0, (total / mass).float(), self.pool)

    def _cost(self, vectors: Tensor, weight: Tensor, index: Tensor) -> Tensor:
        """Weighted squared distance of each vector to its pool vector, float64 [n]."""
        return (weight * (vectors - self.pool[index]).double().square()).sum(1)

    def _sums(self, values: Tensor) -> Tensor:
        """Sums of values [n, d] per cluster, float64 [V, d]; on the CPU, in a fixed order."""
        index, V = self.index.cpu(), len(self.pool)
        columns = values.double().cpu().T.contiguous()
        sums = [torch.bincount(index, weights=column, minlength=V) for column in columns]
        return torch.stack(sums, dim=1).to(values.device)


def merged(vectors: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Merge the pairs of vectors that add least error until ``size`` weighted means are left.

    Pairs are sought in cells of neighbours; the merges of all cells compete for one budget. Each
    pass cuts the cells along other axes and takes the same factor off the count.

    Args:
        vectors: float32 [n, d], n > size.
        weight: float64 [n], positive.
        size: V, means that are left.

    Returns:
        The means float32 [V, d], and int64 [n], the mean that each vector was merged into.
    """
    x, w = vectors.cpu(), weight.cpu().float()
    index = torch.arange(len(x))
    passes = MERGE_PASSES
    while len(x) > size:  # more passes than MERGE_PASSES only where cells run out of pairs
        passes = max(passes - 1, 0)
        target = round(size * (len(x) / size) ** (passes / (passes + 1)))
        x, w, merged_into = _merge_pass(x, w, target, mirrored=passes % 2 == 1)
        index = merged_into[index]
    return x.to(vectors.device), index.to(vectors.device)


def _merge_pass(
    x: Tensor, w: Tensor, target: int, *, mirrored: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass of ``merged`` over x float32 [n, d], w float32 [n], down to ``target`` clusters.

    Returns:
        Means, weights, and int64 [n], the mean that each vector was merged into.
    """
    from dpq_core.kernels.cpu import boxes, merge

    n, d = x.shape
    axes = x
    if mirrored:
        normal = torch.nn.functional.normalize(torch.arange(1.0, d + 1), dim=0)
        axes = x - 2 * (x @ normal)[:, None] * normal
    order = torch.from_numpy(boxes.spatial_order(axes.numpy(), CELL))
    x, w = x[order], w[order]
    keep, drop = torch.zeros(2, n, dtype=torch.int32).numpy()
    cost = torch.full((n,), math.inf)
    arrays = x.numpy(), w.numpy(), CELL, keep, drop, cost.numpy()
    spread(lambda first, last: merge.merge_cells(*arrays, first, last), -(-n // CELL), n * CELL)
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[cost.argsort(stable=True)[: n - target]] = True
    chosen &= cost < math.inf
    into = torch.arange(n)
    merge.apply(x.numpy(), w.numpy(), keep, drop, chosen.numpy(), into.numpy())
    alive = into == torch.arange(n)
    index = torch.empty(n, dtype=torch.int64)
    index[order] = (alive.cumsum(0) - 1)[into]
    return x[alive], w[alive], index


def _flat(codebooks: Tensor, usage: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Codewords float32 [B K, d] and weights float64 [B K]; SpecError where they do not fit."""
    if codebooks.ndim != 3 or usage.shape != codebooks.shape[:2]:
        raise SpecError(
            f"a pool needs codebooks [B, K, d] and their usage [B, K], not "
            f"{list(codebooks.shape)} and {list(usage.shape)}"
        )
    weight = usage.reshape(-1).double().to(codebooks.device)
    if not 1 <= size <= min(MAX_POOL, len(weight)):
        raise SpecError(
            f"a pool for {len(weight):,} codewords holds 1 to {min(MAX_POOL, len(weight)):,} "
            f"vectors, not {size:,}"
        )
    vectors = codebooks.float().reshape(-1, codebooks.shape[2])
    if not bool(torch.isfinite(vectors).all()) or not bool((weight >= 0).all()):
        raise SpecError("codebooks and usage of a pool must be finite, usage not negative")
    return vectors, weight
