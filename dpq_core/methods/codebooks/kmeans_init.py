"""Where k-means starts: distinct data points, random or by squared distance (k-means++)."""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.grouping import Grouping

PLUSPLUS_ROUNDS = 256  # up to this K, k-means++ draws one codeword per round
PLUSPLUS_SAMPLE = 8  # data points looked at per codeword (at least PLUSPLUS_POINTS of them)
PLUSPLUS_POINTS = 2048
SORTED_SAMPLE = 64  # data points per codeword where they are numbers, and are sorted instead
WINDOW = 8  # neighbours on either side that tell the density of numbers
FLOOR = 1e-3  # of the mean mass: numbers without neighbours' gaps, such as many equal ones, have it


def initial_codebooks(
    points: Tensor,
    weights: Tensor | None,
    grouping: Grouping,
    *,
    K: int,
    method: str,
    generator: torch.Generator,
) -> Tensor:
    """The codebooks that k-means starts from: data points, float32 [B, K, d].

    ``random`` draws K distinct points per codebook, one from each of K equal runs of its points.
    ``kmeans++`` works on such a sample of max(8 K, 2048) points and draws each next codeword with
    probability ~ weight * squared distance to the nearest one so far; beyond K = 256 it draws
    K / 256 at a time (as k-means|| does), so that its cost stays that of a few iterations. Numbers
    (d = 1) can be sorted: then nothing is drawn, codewords begin with the density that is best.

    Args:
        points: float32 [G, d, P].
        weights: float32 [G, P] or None.
        grouping: of the points; a padded last group that shares its codebook gives no codeword.
        K: codewords per codebook.
        method: ``random`` or ``kmeans++``.
        generator: on the device of ``points``.
    """
    P, sharing = points.shape[2], grouping.groups_per_codebook
    groups = torch.full((grouping.codebooks,), sharing)
    groups[-1] = grouping.groups_in_sums - (grouping.codebooks - 1) * sharing
    available = (groups * P).to(points.device)  # [B]
    if method == "random":
        index = _distinct(available, K, generator)
        return _take(points, index, sharing).movedim(1, 2).contiguous()
    single = points.shape[1] == 1
    each = SORTED_SAMPLE if single else PLUSPLUS_SAMPLE
    count = min(int(available.max()), max(each * K, PLUSPLUS_POINTS))
    index = _distinct(available, count, generator)
    sample = _take(points, index, sharing).contiguous()
    weight = None if weights is None else _take(weights[:, None].to(points), index, sharing)[:, 0]
    if not single:
        return _plusplus(sample, weight, K, generator)
    # One codebook after the other: sums in float64 of all would take much memory.
    rows = [None] * len(sample) if weight is None else list(weight)
    pairs = zip(sample[:, 0], rows, strict=True)
    return torch.stack([_companded(numbers, row, K) for numbers, row in pairs])


def _distinct(available: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """int64 [B, count]: one of each of ``count`` equal runs of 0..available, hence distinct.

    Repeats where fewer are available than asked for.
    """
    k = torch.arange(count + 1, device=available.device)
    bounds = k * available[:, None] // count  # [B, count + 1]
    first, size = bounds[:, :-1], bounds.diff(dim=1)
    u = torch.rand(first.shape, dtype=torch.float64, generator=generator, device=available.device)
    index = first + (u * size).long()
    return index.clamp_max(available[:, None] - 1)


def _take(points: Tensor, index: Tensor, sharing: int) -> Tensor:
    """The points [B, d, n] at int64 [B, n], an index into each codebook's own points in turn."""
    P = points.shape[2]
    group = torch.arange(len(index), device=index.device)[:, None] * sharing + index // P
    return points[group, :, index % P].movedim(1, 2)


def _plusplus(sample: Tensor, weight: Tensor | None, K: int, generator: torch.Generator) -> Tensor:
    """k-means++ on float32 [B, d, n] (weights [B, n]) -> [B, K, d]."""
    C, d, n = sample.shape
    books = sample.new_empty(C, K, d)
    mass = sample.new_ones(C, n) if weight is None else weight
    nearest = torch.full_like(mass, torch.inf)
    done = 0
    for round_ in range(min(K, PLUSPLUS_ROUNDS)):
        stop = -(-K * (round_ + 1) // PLUSPLUS_ROUNDS) if K > PLUSPLUS_ROUNDS else round_ + 1
        chosen = _draw(mass if done == 0 else mass * nearest, stop - done, generator)
        new = sample.gather(2, chosen[:, None].expand(C, d, -1)).movedim(1, 2).contiguous()
        books[:, done:stop] = new
        nearest = torch.minimum(nearest, kernels.assign(sample, new)[1])
        done = stop
    return books


def _companded(sample: Tensor, weight: Tensor | None, K: int) -> Tensor:
    """Numbers [n] (weights [n]) -> [K, 1] with the density (w p)^(1/3).

    That is the optimum for many codewords (Panter and Dite 1951). Of n sorted numbers of density p
    each stands for 1 / (n p), so its share of the codewords is as w^(1/3) gap^(2/3).
    """
    values, order = sample.sort()
    n = len(values)
    at = torch.arange(n, device=values.device)
    first, last = (at - WINDOW).clamp_min(0), (at + WINDOW).clamp_max(n - 1)
    mass = ((values[last] - values[first]).double() / (last - first).clamp_min(1)) ** (2 / 3)
    if weight is not None:
        mass *= weight[order].double() ** (1 / 3)
    total = (mass + FLOOR * mass.mean()).cumsum(dim=0)
    shares = (torch.arange(K, device=values.device) + 0.5) / K
    chosen = torch.searchsorted(total, shares * total[-1]).clamp_max(n - 1)
    return values[chosen][:, None]


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """int64 [B, count] indices with probability ~ mass [B, n], spread evenly over the mass."""
    total = mass.double().cumsum(dim=1)
    u = torch.rand(len(mass), count, dtype=torch.float64, generator=generator, device=mass.device)
    steps = (torch.arange(count, device=mass.device) + u) / count
    index = torch.searchsorted(total, steps * total[:, -1:], right=True)
    return index.clamp_max(mass.shape[1] - 1)
