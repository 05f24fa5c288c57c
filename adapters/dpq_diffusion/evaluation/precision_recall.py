"""Improved precision and recall (Kynkaanniemi et al. 2019), as the ADM evaluator computes them.

Each set of images spans a manifold: the union of the balls around its feature vectors that reach
to their k-th nearest neighbour (k = 3). Precision is the share of samples inside the reference's
manifold, recall the share of reference images inside the samples' manifold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.run import Progress, silent

NEIGHBOURS = 3

BLOCK = 10_000
"""Feature vectors per side of one block of distances: 400 MB in float32."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, as shares between 0 and 1."""

    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Blocks of squared distances, and how they are computed.

    Attributes:
        half: whether to compute in float16, as the reference implementation does on a GPU (with
            float32 where a block overflows), so that its numbers come out to the last digit.
        block: feature vectors per side of a block; bounds the memory, not the result.
        device: where the blocks are computed.
    """

    half: bool = False
    block: int = BLOCK
    device: torch.device | str = "cpu"

    def pairs(self, a: Tensor, b: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """The blocks ``(first row, first column, squared distances float32)`` of ``a`` and ``b``.

        Args:
            a: features float32 ``[N, D]``, the rows.
            b: features float32 ``[M, D]``, the columns.
        """
        for row in range(0, len(a), self.block):
            rows = a[row : row + self.block].to(self.device)
            for column in range(0, len(b), self.block):
                columns = b[column : column + self.block].to(self.device)
                yield row, column, self._squared(rows, columns)

    def _squared(self, u: Tensor, v: Tensor) -> Tensor:
        if self.half:
            low = _squared_half(u.half(), v.half())
            if low.isfinite().all():
                return low.float()
        result = torch.addmm(v.square().sum(1), u, v.T, alpha=-2)
        return result.add_(u.square().sum(1, keepdim=True)).clamp_min_(0)


def _squared_half(u: Tensor, v: Tensor) -> Tensor:
    """Squared distances in float16 arithmetic: sums in float32, every result rounded to float16."""
    wide_u, wide_v = u.float(), v.float()
    norm_u = wide_u.square().half().float().sum(1, keepdim=True).half()
    norm_v = wide_v.square().half().float().sum(1).half()
    products = (wide_u @ wide_v.T).half()
    return (norm_u - 2 * products + norm_v).clamp_min(0)


def precision_recall(
    reference: Tensor,
    samples: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    distances: Distances | None = None,
    progress: Progress = silent,
) -> PrecisionRecall:
    """Precision and recall of samples against a reference.

    Args:
        reference: features ``[N, D]``.
        samples: features ``[M, D]``.
        neighbours: k.
        distances: precision, block size and device of the distances.
        progress: counts blocks of distances.

    Raises:
        SpecError: different dimensions, or not more than k images on a side.
    """
    distances = distances or Distances()
    reference, samples = reference.detach().float(), samples.detach().float()
    _check(reference, samples, neighbours)
    n, m = (-(-len(x) // distances.block) for x in (reference, samples))
    steps = _Steps(progress, n * n + m * m + n * m)
    reach_reference = _radii(reference, neighbours, distances, steps)
    reach_samples = _radii(samples, neighbours, distances, steps)
    reference_inside = torch.zeros(len(reference), dtype=torch.bool)
    samples_inside = torch.zeros(len(samples), dtype=torch.bool)
    for row, column, block in distances.pairs(reference, samples):
        rows, columns = (slice(start, start + distances.block) for start in (row, column))
        within = block <= reach_samples[columns].to(block.device)
        reference_inside[rows] |= within.any(1).cpu()
        within = block <= reach_reference[rows, None].to(block.device)
        samples_inside[columns] |= within.any(0).cpu()
        steps.advance()
    return PrecisionRecall(
        precision=samples_inside.double().mean().item(),
        recall=reference_inside.double().mean().item(),
    )


def _check(reference: Tensor, samples: Tensor, neighbours: int) -> None:
    for name, features in (("reference", reference), ("samples", samples)):
        if features.ndim != 2:
            raise SpecError(f"{name}: features have shape {list(features.shape)}, not [N, D]")
        if len(features) <= neighbours:
            raise SpecError(
                f"{name}: {len(features)} images are too few for precision and recall with "
                f"{neighbours} neighbours; give at least {neighbours + 1}"
            )
        if not features.isfinite().all():
            raise SpecError(f"{name}: features hold NaN or infinity")
    if reference.shape[1] != samples.shape[1]:
        raise SpecError(
            f"reference features have {reference.shape[1]} dimensions, those of the samples "
            f"{samples.shape[1]}; use the same feature extractor for both"
        )


class _Steps:
    """A counter of blocks that reports progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def advance(self) -> None:
        self._done += 1
        self._progress("precision and recall", self._done, self._total)


def _radii(features: Tensor, neighbours: int, distances: Distances, steps: _Steps) -> Tensor:
    """The squared distance float32 ``[N]`` of each vector to its k-th nearest other.

    As in the reference, a vector is its own 0-th neighbour: the value is the ``k + 1`` smallest of
    its row of distances. Only the smallest of each block are kept.
    """
    nearest = torch.full((len(features), neighbours + 1), torch.inf)
    for row, _, block in distances.pairs(features, features):
        rows = slice(row, row + distances.block)
        smallest = block.topk(min(neighbours + 1, block.shape[1]), largest=False).values.cpu()
        both = torch.cat([nearest[rows], smallest], dim=1)
        nearest[rows] = both.topk(neighbours + 1, largest=False).values
        steps.advance()
    return nearest.max(1).values
