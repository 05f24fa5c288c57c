"""First codewords of k-means: distinct subvectors, at random or by squared distance (k-means++).

See docs/algorithms.md#kmeans-start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.grouping import Grouping

PLUSPLUS_ROUNDS = 256  # up to this K, k-means++ draws one codeword per round
PLUSPLUS_SAMPLE = 8  # subvectors in the sample of k-means++ per codeword ...
PLUSPLUS_POINTS = 2048  # ... and at least this many in all
SORTED_SAMPLE = 64  # numbers in the sample per codeword where d = 1, and they are sorted
WINDOW = 8  # neighbours on either side from which the density of numbers is estimated
FLOOR = 1e-3  # mass, over the mean mass, of numbers at no distance from their neighbours


def initial_codebooks(
    subvectors: Tensor,
    weights: Tensor | None,
    grouping: Grouping,
    *,
    K: int,
    method: str,
    generator: torch.Generator,
) -> Tensor:
    """The codebooks that k-means starts from, float32 [B, K, d].

    ``random`` draws K distinct subvectors per codebook, one of each of K equal runs of them.
    ``kmeans++`` works on such a sample of max(8 K, 2048) subvectors and draws each next codeword
    with probability ~ weight * squared distance to the nearest one so far; beyond K = 256 it draws
    K / 256 at a time (as k-means|| does), so that its cost stays that of a few iterations. Numbers
    (d = 1) can be sorted: then nothing is drawn, codewords begin with the density that is best.

    Args:
        subvectors: float32 [G, d, P].
        weights: float32 [G, P] or None.
        grouping: grouping of the subvectors; a padded last group that shares its codebook gives
            no codeword.
        K: codewords per codebook.
        method: ``random`` or ``kmeans++``.
        generator: on the device of ``subvectors``.
    """
    P, groups_per_codebook = subvectors.shape[2], grouping.groups_per_codebook
    groups = torch.full((grouping.codebooks,), groups_per_codebook)
    groups[-1] = grouping.groups_in_sums - (grouping.codebooks - 1) * groups_per_codebook
    available = (groups * P).to(subvectors.device)  # [B]
    if method == "random":
        index = _distinct(available, K, generator)
        return _take(subvectors, index, groups_per_codebook).movedim(1, 2).contiguous()
    are_numbers = subvectors.shape[1] == 1
    per_codeword = SORTED_SAMPLE if are_numbers else PLUSPLUS_SAMPLE
    count = min(int(available.max()), max(per_codeword * K, PLUSPLUS_POINTS))
    index = _distinct(available, count, generator)
    sample = _take(subvectors, index, groups_per_codebook).contiguous()
    weight = None
    if weights is not None:
        weight = _take(weights[:, None].to(subvectors), index, groups_per_codebook)[:, 0]
    if not are_numbers:
        return _plusplus(sample, weight, K, generator)
    # One codebook after the other: sums in float64 of all would take much memory.
    rows = [None] * len(sample) if weight is None else list(weight)
    pairs = zip(sample[:, 0], rows, strict=True)
    return torch.stack([_companded(numbers, row, K) for numbers, row in pairs])


def _distinct(available: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Distinct indices int64 [B, count]: one of each of ``count`` equal runs of 0..available.

    Indices repeat where fewer than ``count`` are available.
    """
    k = torch.arange(count + 1, device=available.device)
    bounds = k * available[:, None] // count  # [B, count + 1]
    first, size = bounds[:, :-1], bounds.diff(dim=1)
    u = torch.rand(first.shape, dtype=torch.float64, generator=generator, device=available.device)
    index = first + (u * size).long()
    return index.clamp_max(available[:, None] - 1)


def _take(subvectors: Tensor, index: Tensor, groups_per_codebook: int) -> Tensor:
    """The subvectors [B, d, n] at int64 [B, n], an index into the subvectors of each codebook."""
    P = subvectors.shape[2]
    codebook = torch.arange(len(index), device=index.device)[:, None]
    group = codebook * groups_per_codebook + index // P
    return subvectors[group, :, index % P].movedim(1, 2)


def _plusplus(sample: Tensor, weight: Tensor | None, K: int, generator: torch.Generator) -> Tensor:
    """Codebooks [B, K, d] by k-means++ on samples float32 [B, d, n] with weights [B, n]."""
    B, d, n = sample.shape
    codebooks = sample.new_empty(B, K, d)
    mass = sample.new_ones(B, n) if weight is None else weight
    nearest = torch.full_like(mass, torch.inf)
    done = 0
    for round_ in range(min(K, PLUSPLUS_ROUNDS)):
        stop = -(-K * (round_ + 1) // PLUSPLUS_ROUNDS) if K > PLUSPLUS_ROUNDS else round_ + 1
        index = _draw(mass if done == 0 else mass * nearest, stop - done, generator)
        new = sample.gather(2, index[:, None].expand(B, d, -1)).movedim(1, 2).contiguous()
        codebooks[:, done:stop] = new
        nearest = torch.minimum(nearest, kernels.assign(sample, new)[1])
        done = stop
    return codebooks


def _companded(sample: Tensor, weight: Tensor | None, K: int) -> Tensor:
    """Codewords [K, 1] with the density (w p)^(1/3) of a sample of numbers [n], weights [n].

    That is the optimum for many codewords (Panter and Dite 1951). Of n sorted numbers of density p
    each stands for 1 / (n p), so its share of the codewords is as w^(1/3) gap^(2/3).
    """
    values, order = sample.sort()
    n = len(values)
    place = torch.arange(n, device=values.device)
    first, last = (place - WINDOW).clamp_min(0), (place + WINDOW).clamp_max(n - 1)
    mass = ((values[last] - values[first]).double() / (last - first).clamp_min(1)) ** (2 / 3)
    if weight is not None:
        mass *= weight[order].double() ** (1 / 3)
    total = (mass + FLOOR * mass.mean()).cumsum(dim=0)
    shares = (torch.arange(K, device=values.device) + 0.5) / K
    index = torch.searchsorted(total, shares * total[-1]).clamp_max(n - 1)
    return values[index][:, None]


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices int64 [B, count] with probability ~ mass [B, n], spread evenly over the mass."""
    total = mass.double().cumsum(dim=1)
    u = torch.rand(len(mass), count, dtype=torch.float64, generator=generator, device=mass.device)
    steps = (torch.arange(count, device=mass.device) + u) / count
    index = torch.searchsorted(total, steps * total[:, -1:], right=True)
    return index.clamp_max(mass.shape[1] - 1)
