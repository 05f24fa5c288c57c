"""Search for the codewords, one per stage, that add up to a subvector.

See AQLM, arXiv 2401.06118, section 3.2, and docs/algorithms.md#beam-search. ``beam_search`` builds
the sums from nothing; ``sweep`` chooses each stage anew while the others stay, which is cheaper and
never makes a sum worse. Both measure in L2 or under one metric per group: with M = F F^T the
distance ``(x - c)^T M (x - c)`` is ``|F^T x - F^T c|^2``, so a metric is a change of coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping

_BOOK_FLOATS = 1 << 26
"""Coordinates of codewords, transformed by a metric, that exist at a time: 256 MB."""

_CHUNK = 1 << 22
"""Coordinates of codewords that ``decode_sum`` gathers at a time."""


def beam_search(
    targets: Tensor,
    codebooks: Tensor,
    grouping: Grouping,
    *,
    metric: Tensor | None = None,
    beam: int = 4,
) -> Tensor:
    """Codes by beam search: stage by stage, the ``beam`` best partial sums are kept.

    Exact for ``beam >= K^(stages - 1)``. Time grows with ``points * stages * beam * K * d``.

    Args:
        targets: float32 [G, d, P], finite.
        codebooks: float32 [S*B, K, d], stage by stage.
        grouping: grouping of the targets.
        metric: float32 [G, d, d], symmetric and positive semidefinite; None is L2.
        beam: partial sums kept per point.

    Returns:
        Codes int32 [S*G, P], stage by stage.

    Raises:
        SpecError: shapes or dtypes do not fit each other, or ``beam`` is below 1.
    """
    if beam < 1:
        raise SpecError(f"beam must be at least 1, not {beam}")
    whole = _Problem.of(targets, codebooks, grouping)
    codes = whole.empty_codes()
    for groups, part in whole.plain_parts(metric):
        codes[:, groups] = part.greedy() if beam == 1 else part.search(beam, 1)[0]
    return codes.flatten(0, 1)


def nearest_sums(
    targets: Tensor,
    codebooks: Tensor,
    grouping: Grouping,
    *,
    keep: int,
    beam: int = 4,
) -> Tensor:
    """The ``keep`` nearest codewords (with several stages: sums) of every point, nearest first.

    Args:
        targets: float32 [G, d, P].
        codebooks: float32 [S*B, K, d].
        grouping: grouping of the targets.
        keep: number of sums, at most K^S.
        beam: see ``beam_search``; at least ``keep`` partial sums are kept.

    Returns:
        Codes int32 [keep, S*G, P].

    Raises:
        SpecError: shapes do not fit, or there are fewer than ``keep`` sums.
    """
    whole = _Problem.of(targets, codebooks, grouping)
    sums = codebooks.shape[1] ** grouping.stages
    if not 1 <= keep <= sums:
        raise SpecError(f"cannot keep {keep} of {sums} codewords; ask for 1 to {sums}")
    return whole.search(max(beam, keep), keep).flatten(1, 2)


def sweep(
    targets: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    grouping: Grouping,
    *,
    metric: Tensor | None = None,
) -> Tensor:
    """One round of coordinate descent (ICM): every stage is chosen anew with the others fixed.

    No point ends farther from its target than it was. Arguments as in ``beam_search``.

    Args:
        targets: float32 [G, d, P].
        codebooks: float32 [S*B, K, d].
        codes: int32 [S*G, P] to start from.
        grouping: grouping of the targets.
        metric: float32 [G, d, d] or None.

    Returns:
        Codes int32 [S*G, P]; ``codes`` is left alone.
    """
    whole = _Problem.of(targets, codebooks, grouping)
    new = codes.view(whole.empty_codes().shape).clone()
    for groups, part in whole.plain_parts(metric):
        new[:, groups] = part.sweep(new[:, groups])
    return new.flatten(0, 1)


def squared_errors(
    targets: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    grouping: Grouping,
    *,
    metric: Tensor | None = None,
) -> Tensor:
    """Squared distance of every point to the sum of its codewords, float32 [G, P].

    Arguments as in ``sweep``.
    """
    whole = _Problem.of(targets, codebooks, grouping)
    by_stage = codes.view(whole.empty_codes().shape)
    errors = [part.errors(by_stage[:, groups]) for groups, part in whole.plain_parts(metric)]
    return torch.cat(errors)


def decode_sum(codes: Tensor, codebooks: Tensor, grouping: Grouping) -> Tensor:
    """The sums of codewords, float32 [G, d, P], of codes [S*G, P] and codebooks [S*B, K, d]."""
    _, K, d = codebooks.shape
    by_stage = codes.view(grouping.stages, -1, codes.shape[1])
    books = codebooks.view(grouping.stages, -1, K, d)
    G, P = by_stage.shape[1:]
    out = torch.zeros(G, d, P, dtype=codebooks.dtype, device=codebooks.device)
    step = max(1, _CHUNK // (d * P))
    for first in range(0, G, step):
        some = slice(first, first + step)
        book = torch.arange(G, device=codes.device)[some, None] // grouping.groups_per_codebook
        for stage_books, stage_codes in zip(books, by_stage, strict=True):
            out[some] += stage_books[book, stage_codes[some].long()].movedim(1, 2)
    return out


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Targets and codebooks whose shapes fit each other.

    Attributes:
        points: float32 [G, d, P].
        books: float32 [S, B, K, d].
        grouping: grouping of the points.
    """

    points: Tensor
    books: Tensor
    grouping: Grouping

    @classmethod
    def of(cls, targets: Tensor, codebooks: Tensor, grouping: Grouping) -> _Problem:
        """Check the shapes, and view codebooks float32 [S*B, K, d] by stage."""
        stages = grouping.stages
        if codebooks.ndim != 3 or len(codebooks) % stages:
            raise SpecError(
                f"codebooks {list(codebooks.shape)} cannot be split into {stages} stages"
            )
        books = codebooks.view(stages, -1, *codebooks.shape[1:])
        kernels.check(targets, books[0].shape, grouping)
        return cls(points=targets, books=books, grouping=grouping)

    def empty_codes(self) -> Tensor:
        """Uninitialised codes, int32 [S, G, P]."""
        G, _, P = self.points.shape
        return self.points.new_empty((len(self.books), G, P), dtype=torch.int32)

    def plain_parts(self, metric: Tensor | None) -> Iterator[tuple[slice, _Problem]]:
        """Split into L2 problems over ranges of groups, in the coordinates of ``metric``."""
        G, d, _ = self.points.shape
        if metric is None:
            yield slice(0, G), self
            return
        if metric.shape != (G, d, d):
            raise SpecError(f"metric must be [{G}, {d}, {d}], not {list(metric.shape)}")
        S, _, K, _ = self.books.shape
        step = max(1, _BOOK_FLOATS // (S * K * d))
        for first in range(0, G, step):
            groups = slice(first, min(first + step, G))
            part = metric[groups].clone()
            if groups.stop == G and self.grouping.pad:
                real = d - self.grouping.pad
                part[-1, real:] = part[-1, :, real:] = 0
            factor = _factor(part)  # [g, d, d]
            book = torch.arange(groups.start, groups.stop, device=metric.device)
            points = factor.movedim(1, 2) @ self.points[groups]
            yield (
                groups,
                _Problem(
                    points=points,
                    books=self.books[:, book // self.grouping.groups_per_codebook] @ factor,
                    grouping=Grouping.of_subvectors(points.shape, stages=S),
                ),
            )

    def search(self, beam: int, keep: int) -> Tensor:
        """Codes int32 [keep, S, G, P] of the ``keep`` nearest sums; see ``nearest_sums``."""
        from dpq_core.kernels.cpu import beam as kernel  # numba loads on first use

        G, d, _ = self.points.shape
        books, points, pad = self.books, self.points, self.grouping.pad
        book_of = torch.arange(G, device=points.device) // self.grouping.groups_per_codebook
        if pad:  # the last group gets a copy of its codebooks without the pad
            points, last = points.clone(), books[:, -1:].clone()
            points[-1, d - pad :] = last[..., d - pad :] = 0
            book_of[-1] = books.shape[1]
            books = torch.cat([books, last], dim=1)
        return kernel.search(points, books, book_of, beam, keep)

    def greedy(self) -> Tensor:
        """Codes int32 [S, G, P], each stage the nearest to the residual of the stages before it."""
        codes, one = self.empty_codes(), self.grouping.one_stage()
        residual = self.points
        for stage, books in enumerate(self.books):
            codes[stage] = kernels.assign(residual, books, one)[0]
            if stage + 1 < len(codes):
                residual = residual - decode_sum(codes[stage], books, one)
        return codes

    def sweep(self, codes: Tensor) -> Tensor:
        """Codes int32 [S, G, P] after one round of coordinate descent; see ``sweep``."""
        codes = codes.clone()
        flat, one = self.books.flatten(0, 1), self.grouping.one_stage()
        residual = self.points - decode_sum(codes.flatten(0, 1), flat, self.grouping)
        for stage, books in enumerate(self.books):
            target = residual + decode_sum(codes[stage], books, one)
            problem = _Problem(points=target, books=books[None], grouping=one)
            new = kernels.assign(target, books, one)[0]
            # The kernels compare rounded scores; only what is nearer by its difference is taken.
            better = problem.errors(new[None]) < problem.errors(codes[stage : stage + 1])
            codes[stage] = torch.where(better, new, codes[stage])
            residual = target - decode_sum(codes[stage], books, one)
        return codes

    def errors(self, codes: Tensor) -> Tensor:
        """Squared errors float32 [G, P] of codes int32 [S, G, P]; see ``squared_errors``."""
        flat = self.books.flatten(0, 1)
        squares = decode_sum(codes.flatten(0, 1), flat, self.grouping)
        squares.sub_(self.points).square_()
        if self.grouping.pad:
            squares[-1, self.points.shape[1] - self.grouping.pad :] = 0
        return squares.sum(dim=1)


def _factor(metric: Tensor) -> Tensor:
    """Factors F [g, d, d] with F F^T = metric, which may be singular (padding, unused inputs)."""
    values, vectors = torch.linalg.eigh(metric.double())
    factor: Tensor = vectors * values.clamp_min(0).sqrt()[:, None]
    return factor.float()
