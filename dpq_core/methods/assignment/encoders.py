"""One step of an assignment: the codes of some columns, given what they should have been.

The sweeps of ``methods.assignment.assign`` know only ``Steps``: a step decides d columns at once
(orientation input; how is up to an ``Encoder``) or one column (orientation output).
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor

from dpq_core.kernels.cpu.metric import nearest, weighted_nearest
from dpq_core.methods.assignment.objective import Objective


class Encoder(Protocol):
    """Chooses codes for the subvectors of one group; more stages than one may need a search."""

    def __call__(self, targets: Tensor, metric: Tensor, group: int, /) -> Tensor:
        """Encode ``rows`` targets.

        Args:
            targets: float32 t [rows, d]; a view, do not write to it.
            metric: float32 M [d, d], symmetric positive definite: the error of a sum of codewords
                c is ``(t - c)^T M (t - c)``.
            group: j, the group of the targets; see ``Grouping`` for its codebooks.

        Returns:
            Codes int32 [S, rows].
        """


class Nearest:
    """The nearest codeword; with several stages each encodes what the stages before it left.

    Args:
        codebooks: float32 [S, B, K, d].
        groups_per_codebook: adjacent groups that share a codebook.
    """

    def __init__(self, codebooks: Tensor, groups_per_codebook: int) -> None:
        self.codebooks, self.sharing = codebooks, groups_per_codebook

    def __call__(self, targets: Tensor, metric: Tensor, group: int) -> Tensor:
        """See ``Encoder``."""
        books, left = self.codebooks[:, group // self.sharing], targets.T  # [S, K, d], [d, rows]
        codes = [nearest(left, books[0], metric)]
        for before, book in itertools.pairwise(books):
            left = left - _words(before, codes[-1])
            codes.append(nearest(left, book, metric))
        return torch.stack(codes)


class Steps(Protocol):
    """Encodes the columns of one chunk of rows, R of them (see Objective.by_column).

    Attributes:
        points: codes per stage and step.
    """

    points: int

    def encode(self, step: int, targets: Tensor, metric: Tensor) -> Tensor:
        """Targets [b, R] -> codes int32 [S, points]."""

    def decode(self, step: int, codes: Tensor) -> Tensor:
        """Codes [S, points] -> values [b, R]."""

    def per_code(self, values: Tensor) -> Tensor:
        """Weighted sums of values [b, R] over what one code stands for: [points]."""

    def spread(self, per_code: Tensor) -> Tensor:
        """Something per code [points] for every row it stands for: [R]."""


class InputSteps:
    """Step j is column group j, one code per row.

    Args:
        objective: the layer.
        codebooks: float32 [S, B, K, d].
        encoder: of a group; nearest codeword, stage by stage, unless given.
        weights: of the chunk's rows, float32 [rows].
    """

    def __init__(
        self,
        objective: Objective,
        codebooks: Tensor,
        encoder: Encoder | None,
        weights: Tensor,
    ) -> None:
        g = objective.grouping
        self.codebooks, self.sharing = codebooks, g.groups_per_codebook
        self.encoder: Encoder = encoder or Nearest(codebooks, self.sharing)
        self.weights, self.points = weights, len(weights)
        self.last, self.real = g.groups - 1, g.d - g.pad

    def encode(self, step: int, targets: Tensor, metric: Tensor) -> Tensor:
        """See ``Steps``."""
        return self.encoder(targets.T, metric, step)

    def decode(self, step: int, codes: Tensor) -> Tensor:
        """See ``Steps``."""
        books = self.codebooks[:, step // self.sharing]
        values = _words(books[0], codes[0])
        for book, code in zip(books[1:], codes[1:], strict=True):
            values += _words(book, code)
        if step == self.last:
            values[self.real :] = 0  # coordinates that do not exist are right anyway
        return values

    def per_code(self, values: Tensor) -> Tensor:
        """See ``Steps``."""
        return values.sum(dim=0) * self.weights

    def spread(self, per_code: Tensor) -> Tensor:
        """See ``Steps``."""
        return per_code


class OutputSteps:
    """Step c is column c, one code per d rows; the weights of the rows are the metric.

    Args:
        objective: the layer; its chunk is all rows.
        codebooks: float32 [S, B, K, d].
    """

    def __init__(self, objective: Objective, codebooks: Tensor) -> None:
        self.rows = len(objective.core)
        self.weights = objective.weights(slice(0, self.rows))
        g = objective.grouping
        self.codebooks, self.sharing, self.points = codebooks, g.groups_per_codebook, g.groups
        self.by_book = self._by_book(self.weights)

    def encode(self, step: int, targets: Tensor, metric: Tensor) -> Tensor:
        """See ``Steps``; one column's metric is a number and changes nothing."""
        left = self._by_book(targets[0])
        codes = []
        for books in self.codebooks:
            code = weighted_nearest(left, books, self.by_book)  # [B, groups of each]
            codes.append(code)
            left = left - _gather(books, code).movedim(1, 2)
        return torch.stack(codes).flatten(1)[:, : self.points]

    def decode(self, step: int, codes: Tensor) -> Tensor:
        """See ``Steps``."""
        books = self.codebooks.shape[1]
        padded = codes.new_zeros(len(codes), books * self.sharing)
        padded[:, : self.points] = codes
        by_book = padded.view(-1, books, self.sharing)
        words = [_gather(*stage) for stage in zip(self.codebooks, by_book, strict=True)]
        row = torch.stack(words).sum(dim=0).flatten()[: len(self.weights)]
        row[self.rows :] = 0
        return row[None]

    def per_code(self, values: Tensor) -> Tensor:
        """See ``Steps``."""
        return self.weights.mul(values.sum(dim=0)).view(self.points, -1).sum(dim=1)

    def spread(self, per_code: Tensor) -> Tensor:
        """See ``Steps``."""
        return per_code.repeat_interleave(len(self.weights) // self.points)

    def _by_book(self, values: Tensor) -> Tensor:
        """[R] -> [B, d, groups of each], zero for groups that do not exist."""
        books, d = self.codebooks.shape[1], self.codebooks.shape[3]
        padded = values.new_zeros(books * self.sharing * d)
        padded[: len(values)] = values
        return padded.view(books, self.sharing, d).movedim(1, 2)


def _words(book: Tensor, codes: Tensor) -> Tensor:
    """Codewords of a codebook [K, d] at codes [n]: [d, n], contiguous (3 times as fast as rows)."""
    return book.T.contiguous().index_select(1, codes)


def _gather(books: Tensor, codes: Tensor) -> Tensor:
    """Codewords [B, n, d] of codebooks [B, K, d] at codes [B, n]."""
    index = codes.long()[..., None].expand(-1, -1, books.shape[2])
    return books.gather(1, index)
