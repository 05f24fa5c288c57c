"""Codes and codewords that reconstruct the output of a layer, given statistics of its input.

The step of ``quantize`` between learning codebooks and storing them
(docs/algorithms.md#assignment, #sequential): error
feedback and coordinate descent over the codes, closed-form updates of the codebooks or the pool,
and a last sweep with the codewords as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dpq_core.methods.additive import stages as additive
from dpq_core.methods.assignment.assign import AssignResult, assign
from dpq_core.methods.assignment.encoders import Encoder
from dpq_core.methods.assignment.least_squares import RefinedCodebooks, refine, relearn
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.data_free import Encoding, QuantizationTask
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.basis.gain import gain_of


@dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """What is known of the inputs of the layer whose weight is quantized.

    Attributes:
        hessian: H = E[x x^T], ``[cols, cols]``, in the order of the weight's columns; None where
            the layer looks rows up.
        row_weight: how often each row counts, ``[rows]`` (look-ups of an embedding's entry).
    """

    hessian: Tensor | None = None
    row_weight: Tensor | None = None


def point_weights(
    task: QuantizationTask, frame: Frame, statistics: InputStatistics
) -> Tensor | None:
    """How much each subvector counts when codebooks are learned: float32 ``[groups, points]``.

    A squared error of the core costs the squared scale of its row times the mean square of the
    input it meets; within a subvector their mean is taken.
    """
    p, hessian, rows = task.partition, statistics.hessian, statistics.row_weight
    if hessian is None and rows is None:
        return None
    device = task.points.device
    by_col, by_row = torch.ones(p.cols, device=device), torch.ones(p.rows, device=device)
    if hessian is not None:
        by_col = frame.rotate_hessian(hessian.to(device).float()).diagonal().clamp(min=0)
    if rows is not None:
        by_row = rows.to(device).float()
    if frame.row_scale is not None:
        by_row = by_row * basis.divisor(frame.row_scale).square()
    along, across = (by_col, by_row) if p.orientation == "input" else (by_row, by_col)
    padded = torch.nn.functional.pad(along, (0, p.pad)).view(p.groups, p.d)
    real = torch.nn.functional.pad(torch.ones_like(along), (0, p.pad)).view(p.groups, p.d)
    weights = (padded.sum(1) / real.sum(1))[:, None] * across
    mean = weights.mean()
    return weights / mean if float(mean) > 0 else None


class OutputError:
    """The output error of one layer, and the ways to lower it.

    Args:
        task: what is quantized.
        frame: its basis and scales.
        hessian: H ``[cols, cols]`` of the layer's input.
    """

    def __init__(self, task: QuantizationTask, frame: Frame, hessian: Tensor) -> None:
        p, scale = task.partition, frame.row_scale
        self.task = task
        self.objective = Objective.of(
            p.from_subvectors(task.points),
            frame.rotate_hessian(hessian.to(task.points.device).float()),
            p,
            orientation=p.orientation,
            damping=task.spec.assignment.damping,
            row_weight=None if scale is None else basis.divisor(scale).square(),
        )

    def improve(self, encoding: Encoding) -> tuple[Encoding, tuple[float, ...]]:
        """Assign, then update codewords and sweep in turns, as the spec has it.

        Returns:
            The encoding, and its damped output error over that of a zero weight: of the codes as
            they came, then after the assignment, each update and each sweep. Never rises.
        """
        how = self.task.spec.assignment
        given = self._assign(encoding, "icm", sweeps=0)
        result = self._assign(encoding, how.method, sweeps=how.sweeps)
        if result.errors[-1] > given.errors[-1]:  # feedback may lose on a handful of rows
            result = self._assign(encoding, "icm", sweeps=how.sweeps)
        errors = [given.errors[-1], result.errors[-1]]
        encoding = replace(encoding, codes=result.codes)
        if how.updates:
            found = self._update(encoding)
            errors += found.errors[1:]
            encoding = replace(encoding, codes=found.codes, values=found.codebooks)
        whole = self.objective.error(torch.zeros_like(self.objective.core))
        return encoding, tuple(error / whole for error in errors) if whole else ()

    def _update(self, encoding: Encoding) -> RefinedCodebooks:
        """Codewords and codes in turns; where every group has its codebook, from fresh codes too.

        Fresh codes gain nothing where codebooks are shared (``least_squares.relearn``).
        """
        p, how = self.task.partition, self.task.spec.assignment
        shared: dict[str, Any] = {"index_map": encoding.index, "encoder": self._encoder()}
        found = refine(
            self.objective, encoding.codes, encoding.values, rounds=how.updates, **shared
        )
        if p.groups_per_codebook > 1 or "ldlq" not in how.method:
            return found
        fresh = relearn(self.objective, encoding.values, **shared)
        return fresh if fresh.errors[-1] < found.errors[-1] else found

    def sweep(self, encoding: Encoding) -> tuple[Encoding, Tensor]:
        """One sweep of coordinate descent, for codewords that storing has moved.

        Returns:
            The encoding, and the gain of every row, float64 ``[rows]`` (``tensor.basis.gain``),
            measured in the outputs: ``<w, H w> / <w, H w_hat>``.
        """
        found = self._assign(encoding, "icm", sweeps=1)
        gains = []
        for rows in self.objective.chunks():
            weight = self.objective.by_column(rows)
            values = self.objective.by_column(rows, found.core_hat)
            image = self.objective.hessian.matrix @ weight
            energy = (weight * image).sum(0, dtype=torch.float64)
            along = (values * image).sum(0, dtype=torch.float64)
            gains.append(gain_of(energy, along)[: rows.stop - rows.start])
        return replace(encoding, codes=found.codes), torch.cat(gains)

    def _assign(self, encoding: Encoding, method: str, *, sweeps: int) -> AssignResult:
        encoder = self._encoder()
        return assign(
            self.objective,
            encoding.books,
            method=method,
            sweeps=sweeps,
            codes=encoding.codes if method == "icm" else None,
            encoder=None if encoder is None else encoder(encoding.books),
        )

    def _encoder(self) -> Callable[[Tensor], Encoder] | None:
        """How sums of codewords are searched; one codeword needs no search."""
        p = self.task.partition
        if p.stages == 1 or p.orientation == "output":
            return None
        beam = self.task.spec.assignment.beam
        return partial(additive.encoder, grouping=p, beam=beam)


def output_error(
    task: QuantizationTask, frame: Frame, statistics: InputStatistics
) -> OutputError | None:
    """What the assignment is to lower; None where it is ``l2``, or nothing is known of inputs."""
    if task.spec.assignment.method == "l2" or statistics.hessian is None:
        return None
    return OutputError(task, frame, statistics.hessian)
