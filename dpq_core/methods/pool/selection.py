"""Codebook pool: all codebooks of a tensor as indices into one set of vectors.

See docs/algorithms.md#pool, #pool-wkmeans.

Instead of codebooks ``[C, K, d]`` a tensor stores a pool ``[N, d]`` and, for each codeword, the
index of its pool vector. ``greedy`` builds the pool as the paper describes it, ``wkmeans`` by
minimising the error that the pool adds.
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
from dpq_core.tensor.pool_size import MAX_POOL

SCAN = 1024
"""Codewords that the greedy scan compares with each other at a time."""

CELL = 128
"""Vectors merged among themselves; the time of a pass is proportional to it."""

MERGE_PASSES = 2
"""Passes of merging, over differently cut cells, so that few neighbours stay apart."""

SETTLED = 1e-3
"""Rounds of k-means that gain less than this share of the error are the last."""


def greedy(codebooks: Tensor, usage: Tensor, size: int, tau: float) -> tuple[Tensor, Tensor]:
    """The most used codewords that are not within ``tau`` of one another, as the pool.

    The paper leaves metric and remainder open (docs/algorithms.md#pool): ``tau`` is relative to the
    usage-weighted root mean square norm, equal usage goes to the larger norm, and where fewer
    than ``size`` codewords are that far apart, the most used of the others fill the pool.

    Args:
        codebooks: float32 [C, K, d].
        usage: [C, K], subvectors coded by each codeword.
        size: N, vectors of the pool.
        tau: least distance of two pool vectors.

    Returns:
        The pool float32 [N, d], most used first, and int32 [C, K], the nearest pool vector of
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
        rest = torch.ones(len(order), dtype=torch.bool)
        rest[accepted] = False
        others = rest.nonzero()[: size - len(accepted), 0]
        accepted = torch.cat([accepted, others]).sort().values
    pool = vectors[order[accepted.to(order.device)]]
    index = nearest(vectors, pool)[0]
    return pool, index.int().view(codebooks.shape[:2])


def _apart(vectors: Tensor, size: int, squared: float) -> Tensor:
    """Places int64 of vectors, in order, further than a distance from all those before them."""
    accepted = torch.empty(0, dtype=torch.int64)
    for start in range(0, len(vectors), SCAN):
        block = vectors[start : start + SCAN]
        far = torch.ones(len(block), dtype=torch.bool)
        if len(accepted):
            far = (nearest(block, vectors[accepted.to(block.device)])[1] > squared).cpu()
        survivors = far.nonzero()[:, 0]
        close = _within(block.cpu()[survivors], squared).numpy()
        taken = np.ones(len(close), bool)
        for i in range(len(close)):
            if taken[i]:
                taken[i + 1 :] &= ~close[i, i + 1 :]
        accepted = torch.cat([accepted, start + survivors[torch.from_numpy(taken)]])
        if len(accepted) >= size:
            break
    return accepted


def _within(vectors: Tensor, squared: float) -> Tensor:
    """Which pairs of float32 [n, d] are no further apart than a squared distance: bool [n, n]."""
    total = torch.zeros(len(vectors), len(vectors))
    for column in vectors.T:
        total += (column[:, None] - column).square()
    return total <= squared


def wkmeans(
    codebooks: Tensor, usage: Tensor, size: int, *, iterations: int = 2
) -> tuple[Tensor, Tensor]:
    """Usage-weighted k-means of the codewords (docs/algorithms.md#pool-wkmeans).

    A codeword is the mean of its subvectors, so ``sum usage |c - pool[index]|^2`` is exactly what
    the pool adds to the squared error. There are only some two to ten codewords per pool vector:
    k-means from sampled starts stays 10 to 50 % above what merging the cheapest pairs first
    reaches (Equitz 1989), so merging is the start here, and a few iterations follow.

    Args:
        codebooks: float32 [C, K, d].
        usage: [C, K], not negative; codewords of no usage follow their nearest pool vector.
        size: N, vectors of the pool.
        iterations: of k-means, at most.

    Returns:
        The pool float32 [N, d] and int32 [C, K], the nearest pool vector of each codeword.

    Raises:
        SpecError: as in ``greedy``.
    """
    vectors, weight = _flat(codebooks, usage, size)
    used = weight > 0
    if int(used.sum()) <= size:  # all that is used, and as much of the rest as fits
        order = (~used).to(torch.uint8).argsort(stable=True)
        pool = vectors[order[:size]]
        index = nearest(vectors, pool)[0]
        return pool, index.int().view(codebooks.shape[:2])
    points, mass = vectors[used], weight[used]
    clusters = Clusters(Nearest(points), *merged(points, mass, size))
    before = math.inf
    for _ in range(iterations):
        cost = clusters.iterate(points, mass[:, None].expand_as(points))
        if cost > (1 - SETTLED) * before:
            break
        before = cost
    pool, index = clusters.pool, torch.empty_like(used, dtype=torch.int64)
    index[used] = clusters.search(pool, guess=clusters.index)[0]
    if not bool(used.all()):
        index[~used] = nearest(vectors[~used], pool)[0]
    return pool, index.int().view(codebooks.shape[:2])


@dataclass
class Clusters:
    """Vectors in clusters around pool vectors.

    Attributes:
        search: over float32 [n, d], those given to ``iterate``.
        pool: float32 [N, d].
        index: int64 [n], the cluster of each vector.
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
            sum weight (vector - pool)^2, before the pool vectors moved.
        """
        near = self.search(self.pool, guess=self.index)[0]
        stay, move = self._cost(vectors, weight, self.index), self._cost(vectors, weight, near)
        self.index = torch.where(move < stay, near, self.index)
        cost = torch.minimum(move, stay)
        self._move_to_means(vectors, weight)
        empty = (torch.bincount(self.index, minlength=len(self.pool)) == 0).nonzero()[:, 0]
        if len(empty):
            left = self._cost(vectors, weight, self.index)  # zero for a member alone
            costly = left.argsort(descending=True, stable=True)[: len(empty)]
            costly = costly[left[costly] > 0]
            self.index[costly] = empty[: len(costly)]
            self._move_to_means(vectors, weight)
        return float(cost.sum())

    def _move_to_means(self, vectors: Tensor, weight: Tensor) -> None:
        total, mass = self._sums(weight * vectors), self._sums(weight)
        self.pool = torch.where(mass > 0, (total / mass).float(), self.pool)

    def _cost(self, vectors: Tensor, weight: Tensor, index: Tensor) -> Tensor:
        """float64 [n]."""
        return (weight * (vectors - self.pool[index]).double().square()).sum(1)

    def _sums(self, values: Tensor) -> Tensor:
        """Sums per cluster, float64 [N, columns]. On the CPU, where their order is fixed."""
        index, N = self.index.cpu(), len(self.pool)
        columns = values.double().cpu().T.contiguous()
        sums = [torch.bincount(index, weights=column, minlength=N) for column in columns]
        return torch.stack(sums, dim=1).to(values.device)


def merged(vectors: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Join the pairs that add least error until ``size`` weighted means are left.

    Pairs are sought in cells of neighbours; the merges of all cells compete for one budget. Each
    pass cuts the cells along other axes and takes the same factor off the count.

    Args:
        vectors: float32 [n, d], n > size.
        weight: float64 [n], positive.
        size: N, vectors left.

    Returns:
        The means float32 [N, d], and int64 [n], the mean that each vector went into.
    """
    x, w = vectors.cpu(), weight.cpu().float()
    index = torch.arange(len(x))
    left = MERGE_PASSES
    while len(x) > size:  # more passes than MERGE_PASSES only where cells run out of pairs
        left = max(left - 1, 0)
        target = round(size * (len(x) / size) ** (left / (left + 1)))
        x, w, joined = _merge_pass(x, w, target, mirrored=left % 2 == 1)
        index = joined[index]
    return x.to(vectors.device), index.to(vectors.device)


def _merge_pass(
    x: Tensor, w: Tensor, target: int, *, mirrored: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass of ``merged``, down to ``target`` clusters x float32 [n, d], w float32 [n].

    Returns:
        Means, weights, and int64 [n], where each went.
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
    price = torch.full((n,), math.inf)
    arrays = x.numpy(), w.numpy(), CELL, keep, drop, price.numpy()
    spread(lambda first, last: merge.merge_cells(*arrays, first, last), -(-n // CELL), n * CELL)
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[price.argsort(stable=True)[: n - target]] = True
    chosen &= price < math.inf
    into = torch.arange(n)
    merge.apply(x.numpy(), w.numpy(), keep, drop, chosen.numpy(), into.numpy())
    alive = into == torch.arange(n)
    index = torch.empty(n, dtype=torch.int64)
    index[order] = (alive.cumsum(0) - 1)[into]
    return x[alive], w[alive], index


def _flat(codebooks: Tensor, usage: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Codewords float32 [C K, d] and weights float64 [C K], checked."""
    if codebooks.ndim != 3 or usage.shape != codebooks.shape[:2]:
        raise SpecError(
            f"a pool needs codebooks [C, K, d] and their usage [C, K], not "
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
