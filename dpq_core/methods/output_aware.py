"""Codes and codewords that reconstruct the output of a layer, given statistics of its input.

This is the step of ``quantize`` between learning codebooks and storing them
(docs/algorithms.md#assignment): error feedback and coordinate descent over the codes, closed-form
updates of the codebooks or the pool, and a last sweep with the codewords as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dpq_core.kernels.cpu.threads import one_torch_thread
from dpq_core.methods.additive import stages as additive
from dpq_core.methods.assignment.assign import AssignResult, assign
from dpq_core.methods.assignment.encoders import Encoder
from dpq_core.methods.assignment.hessian import cholesky
from dpq_core.methods.assignment.least_squares import RefinedCodebooks, refine, relearn
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.data_free import Encoding, QuantizationTask
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.basis.frame import Frame

DRIFT_SHARE = 0.25
"""Share of the drift of inputs for which weights make up (docs/algorithms.md#drift)."""

_COLUMNS = 1024
"""Columns of the drift that are float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """Statistics of the inputs of the layer whose weight is quantized.

    Attributes:
        hessian: H = E[x x^T], ``[C, C]``, in the order of the weight's columns; None for an
            embedding.
        drift: E[(y - x) x^T], ``[C, C]``, with y the input in the uncompressed model; None where
            the inputs are taken for those of the uncompressed model.
        row_weight: how often each row of an embedding is looked up, ``[R]``; None otherwise.
    """

    hessian: Tensor | None = None
    drift: Tensor | None = None
    row_weight: Tensor | None = None


def corrected(matrix: Tensor, statistics: InputStatistics, damping: float) -> Tensor:
    """The weight that makes up for a part of what its input has drifted.

    E|W y - V x|^2 is least for V = W + W E[(y - x) x^T] H^-1, and the error of V_hat is then the
    usual one against V (GPTAQ, arXiv 2504.02692). ``DRIFT_SHARE`` of that step is taken.

    Args:
        matrix: the weight W ``[R, C]``, any floating dtype.
        statistics: H and the drift.
        damping: added to the diagonal of H / mean(diag H).

    Raises:
        SpecError: H is not positive semidefinite.
    """
    hessian, drift = statistics.hessian, statistics.drift
    if hessian is None or drift is None:
        return matrix
    weight = matrix.to(torch.float64, copy=True)
    moved = torch.empty_like(weight)
    for first in range(0, len(drift), _COLUMNS):  # a whole matrix of float64 may be a gigabyte
        columns = slice(first, first + _COLUMNS)
        moved[:, columns] = weight @ drift[:, columns].double()
    scale = float(hessian.diagonal().double().mean()) or 1.0
    damped = hessian.to(torch.float64, copy=True).div_(scale)
    damped.diagonal().add_(damping)
    factor = cholesky(damped)
    with one_torch_thread():  # as the factor: the same bytes for any number of threads
        step = torch.cholesky_solve(moved.T, factor).T
    return weight.add_(step, alpha=DRIFT_SHARE / scale).to(torch.float32)


def point_weights(
    task: QuantizationTask, frame: Frame, statistics: InputStatistics
) -> Tensor | None:
    """Weight of each subvector for learning codebooks, float32 ``[G, P]``; None: all count alike.

    A squared error of the core costs the squared scale of its row times the mean square of its
    input; within a subvector their mean is taken (docs/algorithms.md#point-weights).
    """
    p, hessian, rows = task.partition, statistics.hessian, statistics.row_weight
    if hessian is None and rows is None:
        return None
    device = task.subvectors.device
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


class OutputOptimizer:
    """Lowers the output error of one layer over codes and codewords.

    Args:
        task: subvectors of the layer's weight, and all choices.
        frame: basis and scales of the weight.
        hessian: H ``[C, C]`` of the layer's input.
    """

    def __init__(self, task: QuantizationTask, frame: Frame, hessian: Tensor) -> None:
        p, scale = task.partition, frame.row_scale
        self.task = task
        self.objective = Objective.of(
            p.from_subvectors(task.subvectors),
            frame.rotate_hessian(hessian.to(task.subvectors.device).float()),
            p,
            orientation=p.orientation,
            damping=task.spec.assignment.damping,
            row_weight=None if scale is None else basis.divisor(scale).square(),
        )

    def improve(self, encoding: Encoding) -> tuple[Encoding, tuple[float, ...]]:
        """Assign codes, then update codewords and sweep over codes in turns, as the spec asks.

        Returns:
            The encoding, and its damped output error over that of a zero weight: with the codes
            that were given, then after the assignment, each update and each sweep. Never rises.
        """
        spec = self.task.spec.assignment
        start = self._assign(encoding, "icm", sweeps=0)
        result = self._assign(encoding, spec.method, sweeps=spec.sweeps)
        if result.errors[-1] > start.errors[-1]:  # feedback may lose on a handful of rows
            result = self._assign(encoding, "icm", sweeps=spec.sweeps)
        errors = [start.errors[-1], result.errors[-1]]
        encoding = replace(encoding, codes=result.codes)
        if spec.updates:
            refined = self._update(encoding)
            errors += refined.errors[1:]
            encoding = replace(encoding, codes=refined.codes, codewords=refined.codebooks)
        zero_error = self.objective.error(torch.zeros_like(self.objective.core))
        return encoding, tuple(error / zero_error for error in errors) if zero_error else ()

    def _update(self, encoding: Encoding) -> RefinedCodebooks:
        """Update codewords and codes in turns; with several updates from fresh codes too.

        Fresh codes gain nothing where codebooks are shared (``least_squares.relearn``).
        """
        p, spec = self.task.partition, self.task.spec.assignment
        arguments: dict[str, Any] = {"index_map": encoding.index_map, "encoder": self._encoder()}
        refined = refine(
            self.objective, encoding.codes, encoding.codewords, rounds=spec.updates, **arguments
        )
        if spec.updates < 2 or p.groups_per_codebook > 1 or "ldlq" not in spec.method:
            return refined
        fresh = relearn(self.objective, encoding.codewords, **arguments)
        return fresh if fresh.errors[-1] < refined.errors[-1] else refined

    def sweep(self, encoding: Encoding) -> tuple[Encoding, Tensor]:
        """One sweep of coordinate descent, for codewords that were rounded for storage.

        Returns:
            The encoding, and the gain of every row, float64 ``[R]`` (``tensor.basis.gain``),
            measured on outputs: ``<w, H w> / <w, H w_hat>``.
        """
        result = self._assign(encoding, "icm", sweeps=1)
        return replace(encoding, codes=result.codes), self.objective.gains(result.core_hat)

    def _assign(self, encoding: Encoding, method: str, *, sweeps: int) -> AssignResult:
        """Choose codes by a method; ``icm`` starts from the codes of the encoding."""
        encoder = self._encoder()
        return assign(
            self.objective,
            encoding.codebooks,
            method=method,
            sweeps=sweeps,
            codes=encoding.codes if method == "icm" else None,
            encoder=None if encoder is None else encoder(encoding.codebooks),
        )

    def _encoder(self) -> Callable[[Tensor], Encoder] | None:
        """A function that makes the encoder for sums of codewords; None for single codewords."""
        p = self.task.partition
        if p.stages == 1 or p.orientation == "output":
            return None
        beam = self.task.spec.assignment.beam
        return partial(additive.encoder, grouping=p, beam=beam)


def output_optimizer(
    task: QuantizationTask, frame: Frame, statistics: InputStatistics
) -> OutputOptimizer | None:
    """The optimizer of one layer; None for the assignment ``l2`` and without statistics."""
    if task.spec.assignment.method == "l2" or statistics.hessian is None:
        return None
    return OutputOptimizer(task, frame, statistics.hessian)
