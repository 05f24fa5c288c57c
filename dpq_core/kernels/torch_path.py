"""Nearest codewords and cluster sums by torch operations, on any device, in bounded memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpq_core.grouping import Grouping

TILE_FLOATS = 1 << 24  # one tile of scores; at most three are alive: 192 MB
MAX_POINTS = 1 << 14  # points of one group per tile
MAX_EXACT_D = 3  # up to here sum (x - c)^2 costs little more than |c|^2 / 2 - x.c


class TorchLloyd:
    """The passes of dpq_core.kernels.Lloyd; arguments as in dpq_core.kernels.lloyd.

    Clusters are summed as 64-bit integers of ``value * 2^bits / max |value|``: integer additions
    commute, so the sums do not depend on the order in which a GPU's threads arrive.
    """

    def __init__(
        self, points: Tensor, grouping: Grouping, *, K: int, weights: Tensor | None = None
    ) -> None:
        self.points, self.grouping, self.K, self.weights = points, grouping, K, weights
        G, d, P = points.shape
        self.codes = torch.full((G, P), -1, dtype=torch.int32, device=points.device)
        self.columns = d + 1 + (weights is not None)
        self.batch = max(1, TILE_FLOATS // (4 * P * self.columns))  # groups; int64 and float64
        heaviest = 1.0 if weights is None else float(weights.max())
        largest = float(points.abs().max()) * heaviest
        bits = 62 - (G * P).bit_length()
        self.scales = torch.tensor(
            [_power_of_two(largest, bits)] * d
            + [_power_of_two(heaviest, bits)]
            + [_power_of_two(heaviest * heaviest, bits)] * (weights is not None),
            dtype=torch.float64,
            device=points.device,
        )

    def moments(self) -> Tensor:
        """See dpq_core.kernels.Lloyd."""
        d = self.points.shape[1]
        B, groups_per_codebook = self.grouping.codebooks, self.grouping.groups_per_codebook
        rows = self.scales.new_zeros(B * groups_per_codebook, 2 * d + 1)
        for first in range(0, self.grouping.groups_in_sums, self.batch):
            part = slice(first, min(first + self.batch, self.grouping.groups_in_sums))
            x = self.points[part].double()
            w = self._weights(part)
            rows[part, :d] = (w * x).sum(2)
            rows[part, d : 2 * d] = (w * x * x).sum(2)
            rows[part, 2 * d] = w.sum((1, 2))
        return rows.view(B, groups_per_codebook, -1).sum(1)

    def assign(self, codebooks: Tensor) -> int:
        """See dpq_core.kernels.Lloyd."""
        codes = _nearest(self.points, codebooks, self.grouping)
        moved = int((codes != self.codes).sum())
        self.codes = codes
        return moved

    def step(self, codebooks: Tensor) -> tuple[int, Tensor]:
        """See dpq_core.kernels.Lloyd."""
        moved = self.assign(codebooks)
        B, K, _ = codebooks.shape
        sums = torch.zeros(B * K, self.columns, dtype=torch.int64, device=self.points.device)
        for first in range(0, self.grouping.groups_in_sums, self.batch):
            part = slice(first, min(first + self.batch, self.grouping.groups_in_sums))
            w = self._weights(part)
            values = [w * self.points[part].double(), w]
            if self.weights is not None:
                values.append(w * w)
            columns = torch.cat(values, dim=1).movedim(1, 2) * self.scales  # [groups, P, columns]
            group = torch.arange(part.start, part.stop, device=sums.device)
            rows = (group // self.grouping.groups_per_codebook)[:, None] * K + self.codes[part]
            sums.index_add_(0, rows.reshape(-1), columns.round().long().reshape(-1, self.columns))
        return moved, (sums / self.scales).view(B, K, self.columns)

    def result(self) -> Tensor:
        """See dpq_core.kernels.Lloyd."""
        return self.codes

    def _weights(self, part: slice) -> Tensor:
        """Weights of some groups, float64 [groups, 1, P]."""
        if self.weights is not None:
            return self.weights[part, None].double()
        groups, P = part.stop - part.start, self.points.shape[2]
        return self.scales.new_ones(1, 1, 1).expand(groups, 1, P)


def assign(points: Tensor, codebooks: Tensor, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """See dpq_core.kernels.assign."""
    codes = _nearest(points, codebooks, grouping)
    G, d, P = points.shape
    book = torch.arange(G, device=points.device)[:, None] // grouping.groups_per_codebook
    distances = torch.zeros(G, P, device=points.device)
    for i in range(d):
        # The last group ignores its pad coordinates.
        part = slice(0, G - 1 if i >= d - grouping.pad else G)
        distances[part] += (points[part, i] - codebooks[book[part], codes[part], i]).square()
    return codes, distances


def _nearest(points: Tensor, codebooks: Tensor, grouping: Grouping) -> Tensor:
    """Nearest codewords, int32 [G, P], tile by tile over groups, points and codewords."""
    (G, d, P), K, pad = points.shape, codebooks.shape[1], grouping.pad
    run = min(P, MAX_POINTS)
    batch = max(1, TILE_FLOATS // (max(run, d) * K))
    codes = torch.empty(G, P, dtype=torch.int32, device=points.device)
    for first in range(0, G, batch):
        groups = torch.arange(first, min(first + batch, G), device=points.device)
        books = codebooks[groups // grouping.groups_per_codebook]  # [groups, K, d], a copy
        x = points[first : first + batch]
        if pad and first + batch >= G:
            x = x.clone()
            x[-1, d - pad :] = 0
            books[-1, :, d - pad :] = 0
        centre = books.mean(dim=1, keepdim=True)  # keeps |x|^2, and with it the rounding, small
        for start in range(0, P, run):
            block = x[:, :, start : start + run].movedim(1, 2)  # [groups, run, d]
            codes[first : first + batch, start : start + run] = _scan(block, books, centre)
    return codes


def _scan(x: Tensor, books: Tensor, centre: Tensor) -> Tensor:
    """Index of the best codeword of each point, int64 [groups, run]."""
    step = max(1, TILE_FLOATS // (x.shape[0] * x.shape[1]))
    best = x.new_full(x.shape[:2], math.inf)
    codes = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    for first in range(0, books.shape[1], step):
        c = books[:, first : first + step]
        if x.shape[2] <= MAX_EXACT_D:
            scores = (x[:, :, None, 0] - c[:, None, :, 0]).square_()
            for i in range(1, x.shape[2]):
                scores += (x[:, :, None, i] - c[:, None, :, i]).square_()
        else:
            c = c - centre
            half_norms = c.square().sum(2)[:, None] / 2
            scores = torch.baddbmm(half_norms, x - centre, c.movedim(1, 2), alpha=-1)
        score, code = scores.min(dim=2)
        codes = torch.where(score < best, code + first, codes)
        best = torch.minimum(best, score)
    return codes


def _power_of_two(largest: float, bits: int) -> float:
    """The power of two that brings values up to ``largest`` just below 2^bits."""
    return math.ldexp(1.0, bits - math.frexp(largest)[1]) if 0 < largest < math.inf else 1.0
