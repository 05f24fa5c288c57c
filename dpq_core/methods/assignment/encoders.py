"""Steps of an assignment: codes of some columns for given targets.

The sweeps of ``methods.assignment.sweeps`` call only ``Steps``: a step decides d columns at once
(orientation input, by an ``Encoder``) or one column (orientation output). Arrays of a chunk have m
rows, rounded up to whole subvectors (``Objective.by_column``).
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu.metric import nearest, weighted_nearest
from dpq_core.methods.assignment.objective import Objective


class Encoder(Protocol):
    """Chooses codes for the subvectors of one group."""

    def __call__(self, targets: Tensor, metric: Tensor, group: int, /) -> Tensor:
        """Choose the codes of m targets.

        Args:
            targets: float32 t [m, d]; a view, do not write to it.
            metric: float32 M [d, d], symmetric positive definite: the error of a sum of codewords
                c is ``(t - c)^T M (t - c)``.
            group: j, the group of the targets; see ``Grouping`` for its codebooks.

        Returns:
            Codes int32 [S, m].
        """


class NearestEncoder:
    """Encodes by the nearest codeword, each stage on the residual of the stages before it.

    Args:
        codebooks: float32 [S, B, K, d].
        grouping: grouping of the subvectors.
    """

    def __init__(self, codebooks: Tensor, grouping: Grouping) -> None:
        self.codebooks, self.grouping = codebooks, grouping

    def __call__(self, targets: Tensor, metric: Tensor, group: int) -> Tensor:
        """See ``Encoder``."""
        stages = self.codebooks[:, group // self.grouping.groups_per_codebook]  # [S, K, d]
        residual = targets.T  # [d, m]
        codes = [nearest(residual, stages[0], metric)]
        for before, codebook in itertools.pairwise(stages):
            residual = residual - _words(before, codes[-1])
            codes.append(nearest(residual, codebook, metric))
        return torch.stack(codes)


class Steps(Protocol):
    """Encodes and decodes the columns of one chunk of m rows, step by step.

    Attributes:
        points: codes of one stage and step.
    """

    points: int

    def encode(self, step: int, targets: Tensor, metric: Tensor) -> Tensor:
        """Codes int32 [S, points] of targets [b, m]."""

    def decode(self, step: int, codes: Tensor) -> Tensor:
        """Values [b, m] that codes [S, points] stand for."""

    def sum_per_code(self, values: Tensor) -> Tensor:
        """Weighted sums of values [b, m] over what each code stands for: [points]."""

    def repeat_per_row(self, per_code: Tensor) -> Tensor:
        """A value per code [points] repeated for every row that the code stands for: [m]."""


class InputSteps:
    """Steps of one column group each, with one code per row (orientation input).

    Args:
        objective: the layer.
        codebooks: float32 [S, B, K, d].
        encoder: encoder of a group; by default the nearest codeword, stage by stage.
        weights: weights of the chunk's rows, float32 [m].
    """

    def __init__(
        self,
        objective: Objective,
        codebooks: Tensor,
        encoder: Encoder | None,
        weights: Tensor,
    ) -> None:
        g = objective.grouping
        self.codebooks, self.grouping = codebooks, g
        self.encoder: Encoder = encoder or NearestEncoder(codebooks, g)
        self.weights, self.points = weights, len(weights)
        self.last, self.unpadded = g.groups - 1, g.d - g.pad

    def encode(self, step: int, targets: Tensor, metric: Tensor) -> Tensor:
        """See ``Steps``."""
        return self.encoder(targets.T, metric, step)

    def decode(self, step: int, codes: Tensor) -> Tensor:
        """See ``Steps``."""
        stages = self.codebooks[:, step // self.grouping.groups_per_codebook]  # [S, K, d]
        values = _words(stages[0], codes[0])
        for codebook, code in zip(stages[1:], codes[1:], strict=True):
            values += _words(codebook, code)
        if step == self.last:
            values[self.unpadded :] = 0  # padding has no error
        return values

    def sum_per_code(self, values: Tensor) -> Tensor:
        """See ``Steps``."""
        return values.sum(dim=0) * self.weights

    def repeat_per_row(self, per_code: Tensor) -> Tensor:
        """See ``Steps``."""
        return per_code


class OutputSteps:
    """Steps of one column each, with one code per d rows (orientation output).

    The weights of the rows are the metric.

    Args:
        objective: the layer; the chunk is all its rows.
        codebooks: float32 [S, B, K, d].
    """

    def __init__(self, objective: Objective, codebooks: Tensor) -> None:
        self.rows = len(objective.core)
        self.weights = objective.weights(slice(0, self.rows))
        self.codebooks, self.grouping = codebooks, objective.grouping
        self.points = objective.grouping.groups
        self.metrics = self._by_codebook(self.weights)

    def encode(self, step: int, targets: Tensor, metric: Tensor) -> Tensor:
        """See ``Steps``; one column's metric is a number and changes nothing."""
        residual = self._by_codebook(targets[0])
        codes = []
        for codebooks in self.codebooks:
            code = weighted_nearest(residual, codebooks, self.metrics)  # [B, groups of each]
            codes.append(code)
            residual = residual - _gather(codebooks, code).movedim(1, 2)
        return torch.stack(codes).flatten(1)[:, : self.points]

    def decode(self, step: int, codes: Tensor) -> Tensor:
        """See ``Steps``."""
        B, groups_per_codebook = self.codebooks.shape[1], self.grouping.groups_per_codebook
        padded = codes.new_zeros(len(codes), B * groups_per_codebook)
        padded[:, : self.points] = codes
        by_codebook = padded.view(-1, B, groups_per_codebook)
        words = [_gather(*stage) for stage in zip(self.codebooks, by_codebook, strict=True)]
        row = torch.stack(words).sum(dim=0).flatten()[: len(self.weights)]
        row[self.rows :] = 0
        return row[None]

    def sum_per_code(self, values: Tensor) -> Tensor:
        """See ``Steps``."""
        return self.weights.mul(values.sum(dim=0)).view(self.points, -1).sum(dim=1)

    def repeat_per_row(self, per_code: Tensor) -> Tensor:
        """See ``Steps``."""
        return per_code.repeat_interleave(len(self.weights) // self.points)

    def _by_codebook(self, values: Tensor) -> Tensor:
        """Values [m] by codebook, [B, d, groups of each], zero for groups that do not exist."""
        _, B, _, d = self.codebooks.shape
        groups_per_codebook = self.grouping.groups_per_codebook
        padded = values.new_zeros(B * groups_per_codebook * d)
        padded[: len(values)] = values
        return padded.view(B, groups_per_codebook, d).movedim(1, 2)


def _words(codebook: Tensor, codes: Tensor) -> Tensor:
    """Codewords [d, n] of a codebook [K, d] at codes [n], contiguous (3 times as fast as rows)."""
    return codebook.T.contiguous().index_select(1, codes)


def _gather(codebooks: Tensor, codes: Tensor) -> Tensor:
    """Codewords [B, n, d] of codebooks [B, K, d] at codes [B, n]."""
    index = codes.long()[..., None].expand(-1, -1, codebooks.shape[2])
    return codebooks.gather(1, index)
