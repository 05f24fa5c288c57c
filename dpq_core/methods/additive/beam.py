"""Encoding with additive codebooks: which codewords, one per stage, add up to a subvector.

METHODS 4.3 (AQLM, arXiv 2401.06118, section 3.2; VQDM, arXiv 2409.00492). ``beam_search`` builds
the sums from nothing; ``sweep`` chooses each stage anew while the others stay, which is cheaper
and never makes a sum worse. Both measure in L2 or under one metric per group: with M = F F^T the
distance ``(x - c)^T M (x - c)`` is ``|F^T x - F^T c|^2``, so a metric is a change of coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import SpecError

_BOOK_FLOATS = 1 << 26
"""Codewords in the coordinates of a metric that exist at a time: 256 MB."""

_CHUNK = 1 << 22
"""Coordinates decoded at a time where only their sums are wanted."""


def beam_search(
    targets: Tensor,
    codebooks: Tensor,
    *,
    stages: int,
    tie: int = 1,
    pad: int = 0,
    metric: Tensor | None = None,
    beam: int = 4,
) -> Tensor:
    """Codes of the additive codebooks, stage by stage, keeping the ``beam`` best partial sums.

    Exact for ``beam >= K^(stages - 1)``. Time grows with ``points * stages * beam * K * d``.

    Args:
        targets: float32 [G, d, P], finite.
        codebooks: float32 [S*C, K, d], stage-major; group j of stage s uses s*C + j // tie.
        stages: S.
        tie: adjacent groups that share their codebooks.
        pad: coordinates at the end of the last group that do not count.
        metric: float32 [G, d, d], symmetric and positive semidefinite; None is L2.
        beam: partial sums kept per point.

    Returns:
        Codes int32 [S*G, P], stage-major.

    Raises:
        SpecError: shapes or dtypes do not fit each other, or ``beam`` is below 1.
    """
    if beam < 1:
        raise SpecError(f"beam must be at least 1, not {beam}")
    whole = _Problem.of(targets, codebooks, stages=stages, tie=tie, pad=pad)
    codes = whole.empty_codes()
    for groups, part in whole.plain_parts(metric):
        codes[:, groups] = part.greedy() if beam == 1 else part.search(beam, 1)[0]
    return codes.flatten(0, 1)


def nearest_sums(
    targets: Tensor,
    codebooks: Tensor,
    *,
    keep: int,
    stages: int = 1,
    tie: int = 1,
    pad: int = 0,
    beam: int = 4,
) -> Tensor:
    """The ``keep`` nearest codewords (with several stages: sums) of every point, nearest first.

    Args:
        targets: float32 [G, d, P].
        codebooks: float32 [S*C, K, d].
        keep: how many, at most K^S.
        stages: S.
        tie: adjacent groups that share their codebooks.
        pad: coordinates at the end of the last group that do not count.
        beam: see ``beam_search``; at least ``keep`` partial sums are kept.

    Returns:
        Codes int32 [keep, S*G, P].

    Raises:
        SpecError: shapes do not fit, or there are fewer than ``keep`` sums.
    """
    whole = _Problem.of(targets, codebooks, stages=stages, tie=tie, pad=pad)
    sums = codebooks.shape[1] ** stages
    if not 1 <= keep <= sums:
        raise SpecError(f"cannot keep {keep} of {sums} codewords; ask for 1 to {sums}")
    return whole.search(max(beam, keep), keep).flatten(1, 2)


def sweep(
    targets: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    *,
    stages: int,
    tie: int = 1,
    pad: int = 0,
    metric: Tensor | None = None,
) -> Tensor:
    """One round of coordinate descent (ICM): every stage is chosen anew with the others fixed.

    No point ends farther from its target than it was. Arguments as in ``beam_search``.

    Args:
        targets: float32 [G, d, P].
        codebooks: float32 [S*C, K, d].
        codes: int32 [S*G, P] to start from.
        stages: S.
        tie: adjacent groups that share their codebooks.
        pad: coordinates at the end of the last group that do not count.
        metric: float32 [G, d, d] or None.

    Returns:
        Codes int32 [S*G, P]; ``codes`` is left alone.
    """
    whole = _Problem.of(targets, codebooks, stages=stages, tie=tie, pad=pad)
    new = codes.view(whole.empty_codes().shape).clone()
    for groups, part in whole.plain_parts(metric):
        new[:, groups] = part.sweep(new[:, groups])
    return new.flatten(0, 1)


def squared_errors(
    targets: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    *,
    stages: int,
    tie: int = 1,
    pad: int = 0,
    metric: Tensor | None = None,
) -> Tensor:
    """Squared distance of every point to the sum of its codewords, float32 [G, P].

    Arguments as in ``sweep``.
    """
    whole = _Problem.of(targets, codebooks, stages=stages, tie=tie, pad=pad)
    by_stage = codes.view(whole.empty_codes().shape)
    errors = [part.errors(by_stage[:, groups]) for groups, part in whole.plain_parts(metric)]
    return torch.cat(errors)


def decode_sum(codes: Tensor, codebooks: Tensor, *, stages: int, tie: int = 1) -> Tensor:
    """The sums of codewords: codes int [S*G, P], codebooks [S*C, K, d] -> float32 [G, d, P]."""
    _, K, d = codebooks.shape
    by_stage = codes.view(stages, -1, codes.shape[1])
    books = codebooks.view(stages, -1, K, d)
    G, P = by_stage.shape[1:]
    out = torch.zeros(G, d, P, dtype=codebooks.dtype, device=codebooks.device)
    step = max(1, _CHUNK // (d * P))
    for first in range(0, G, step):
        some = slice(first, first + step)
        book = torch.arange(G, device=codes.device)[some, None] // tie
        for words, code in zip(books, by_stage, strict=True):
            out[some] += words[book, code[some].long()].movedim(1, 2)
    return out


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Points and codebooks that fit each other.

    Attributes:
        points: float32 [G, d, P].
        books: float32 [S, C, K, d].
        tie: groups per codebook.
        pad: coordinates of the last group that do not count.
    """

    points: Tensor
    books: Tensor
    tie: int
    pad: int

    @classmethod
    def of(cls, targets: Tensor, codebooks: Tensor, *, stages: int, tie: int, pad: int) -> _Problem:
        if stages < 1 or codebooks.ndim != 3 or len(codebooks) % stages:
            raise SpecError(
                f"codebooks {list(codebooks.shape)} cannot be split into {stages} stages"
            )
        books = codebooks.view(stages, -1, *codebooks.shape[1:])
        kernels.check(targets, books[0].shape, tie, pad)
        return cls(points=targets, books=books, tie=tie, pad=pad)

    def empty_codes(self) -> Tensor:
        """int32 [S, G, P]."""
        G, _, P = self.points.shape
        return self.points.new_empty((len(self.books), G, P), dtype=torch.int32)

    def plain_parts(self, metric: Tensor | None) -> Iterator[tuple[slice, _Problem]]:
        """This problem as L2 problems over ranges of groups, in the coordinates of ``metric``."""
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
            own = metric[groups].clone()
            if groups.stop == G and self.pad:
                own[-1, d - self.pad :] = own[-1, :, d - self.pad :] = 0
            factor = _factor(own)  # [g, d, d]
            book = torch.arange(groups.start, groups.stop, device=metric.device) // self.tie
            yield (
                groups,
                _Problem(
                    points=factor.movedim(1, 2) @ self.points[groups],
                    books=self.books[:, book] @ factor,
                    tie=1,
                    pad=0,
                ),
            )

    def search(self, beam: int, keep: int) -> Tensor:
        """See ``nearest_sums``: int32 [keep, S, G, P]."""
        from dpq_core.kernels.cpu import beam as kernel  # numba loads on first use

        G, d, _ = self.points.shape
        books, book_of = self.books, torch.arange(G, device=self.points.device) // self.tie
        points = self.points
        if self.pad:  # the last group gets a copy of its codebooks without the pad
            points, last = points.clone(), books[:, -1:].clone()
            points[-1, d - self.pad :] = last[..., d - self.pad :] = 0
            book_of[-1] = books.shape[1]
            books = torch.cat([books, last], dim=1)
        return kernel.search(points, books, book_of, beam, keep)

    def greedy(self) -> Tensor:
        """Each stage the nearest to what the stages before it leave: int32 [S, G, P]."""
        codes = self.empty_codes()
        residual = self.points
        for stage, books in enumerate(self.books):
            codes[stage] = kernels.assign(residual, books, tie=self.tie, pad=self.pad)[0]
            if stage + 1 < len(codes):
                residual = residual - decode_sum(codes[stage], books, stages=1, tie=self.tie)
        return codes

    def sweep(self, codes: Tensor) -> Tensor:
        """See ``sweep``: int32 [S, G, P] -> the same."""
        codes = codes.clone()
        flat = self.books.flatten(0, 1)
        S = len(self.books)
        residual = self.points - decode_sum(codes.flatten(0, 1), flat, stages=S, tie=self.tie)
        for stage, books in enumerate(self.books):
            target = residual + decode_sum(codes[stage], books, stages=1, tie=self.tie)
            one = replace(self, points=target, books=books[None])
            new = kernels.assign(target, books, tie=self.tie, pad=self.pad)[0]
            # The kernels compare rounded scores; only what is nearer by its difference is taken.
            better = one.errors(new[None]) < one.errors(codes[stage : stage + 1])
            codes[stage] = torch.where(better, new, codes[stage])
            residual = target - decode_sum(codes[stage], books, stages=1, tie=self.tie)
        return codes

    def errors(self, codes: Tensor) -> Tensor:
        """See ``squared_errors``; codes int32 [S, G, P]."""
        flat = self.books.flatten(0, 1)
        wrong = decode_sum(codes.flatten(0, 1), flat, stages=len(codes), tie=self.tie)
        wrong.sub_(self.points).square_()
        if self.pad:
            wrong[-1, self.points.shape[1] - self.pad :] = 0
        return wrong.sum(dim=1)


def _factor(metric: Tensor) -> Tensor:
    """F [g, d, d] with F F^T = metric, which may be singular (a pad, an input never seen)."""
    values, vectors = torch.linalg.eigh(metric.double())
    factor: Tensor = vectors * values.clamp_min(0).sqrt()[:, None]
    return factor.float()
