"""Codes for one layer by any method of assignment (docs/algorithms.md#assignment).

``l2``         nearest codeword of every subvector
``blockdiag``  nearest under the block H_jj ("And the bit goes down", arXiv 1907.05686)
``icm``        coordinate descent: each code is chosen anew while all others stand still
``ldlq``       error feedback from the last column group to the first (QuIP#, arXiv 2402.04396)
``ldlq+icm``   error feedback, then coordinate descent
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.methods.assignment.compiled import CompiledRowChunk
from dpq_core.methods.assignment.encoders import Encoder, InputSteps, OutputSteps, Steps
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.assignment.sweeps import RowChunk
from dpq_core.spec import ASSIGNMENTS


@dataclass(frozen=True, kw_only=True)
class AssignResult:
    """Codes of one layer, and the output error that they leave.

    Attributes:
        codes: int32 [S*G, P], stage by stage.
        core_hat: float32 [R, C], the decoded core.
        errors: damped E_out in the units of the measured H: of the start, then after each sweep.
            Never rises.
    """

    codes: Tensor
    core_hat: Tensor
    errors: tuple[float, ...]


def assign(
    objective: Objective,
    codebooks: Tensor,
    *,
    method: str = "ldlq+icm",
    sweeps: int = 2,
    codes: Tensor | None = None,
    limit: float = 1.0,
    encoder: Encoder | None = None,
) -> AssignResult:
    """Choose codes for one layer.

    Args:
        objective: the layer, its grouping, its second moment and the weights of its rows.
        codebooks: float32 [S*B, K, d].
        method: one of ``spec.ASSIGNMENTS``.
        sweeps: sweeps of coordinate descent at most, for the methods that have any.
        codes: int32 [S*G, P] to start coordinate descent from (method ``icm``); else from ``l2``.
        limit: share of all subvectors, 0..1, whose codes may change (method ``icm``): those that
            could lower the error most at the start.
        encoder: encoder of the groups; by default the nearest codeword, stage by stage.

    Raises:
        SpecError: an unknown method, arguments that do not go with it, or shapes that do not fit.
    """
    _check(objective, codebooks, method, codes)
    stages = objective.grouping.stages
    if encoder is not None and objective.orientation != "input":
        raise SpecError("an encoder of its own needs subvectors along the input axis")
    if (codes is not None or limit < 1) and method != "icm":
        raise SpecError(f"codes and a limit go with method icm, not with {method}")
    books = codebooks.float().view(stages, -1, *codebooks.shape[1:])
    start = None if codes is None else _by_step(objective, codes)
    by_row = objective.orientation == "input"

    def started(rows: slice) -> RowChunk:
        """The chunk of some rows, with its first codes."""
        steps: Steps = (
            InputSteps(objective, books, encoder, objective.weights(rows))
            if by_row
            else OutputSteps(objective, books)
        )
        chunk = (
            CompiledRowChunk(objective, rows, steps, books[0])
            if encoder is None and CompiledRowChunk.can_do(objective, stages)
            else RowChunk(objective.by_column(rows), objective.hessian, steps, stages)
        )
        chunk.start(method, start if start is None or not by_row else start[..., rows])
        return chunk

    allowed = None
    if limit < 1:
        gains = [started(rows).gains() for rows in objective.chunks()]
        allowed = _largest(torch.cat(gains, dim=1), limit)
    results = _ChunkResults(objective, sweeps if method in ("icm", "ldlq+icm") else 0)
    for rows in objective.chunks():
        results.add(started(rows), rows, allowed)
    return results.result()


def _check(objective: Objective, codebooks: Tensor, method: str, codes: Tensor | None) -> None:
    """Raise SpecError where codebooks or codes do not fit, or the method is unknown."""
    g = objective.grouping
    if method not in ASSIGNMENTS:
        raise SpecError(f"unknown assignment {method!r}; choose one of {', '.join(ASSIGNMENTS)}")
    if codebooks.ndim != 3 or codebooks.shape[::2] != (g.stages * g.codebooks, g.d):
        raise SpecError(
            f"{g.groups} groups, {g.groups_per_codebook} per codebook, in {g.stages} stages need "
            f"codebooks [{g.stages * g.codebooks}, K, {g.d}], not {list(codebooks.shape)}"
        )
    if codes is not None and codes.shape != (g.stages * g.groups, g.points):
        raise SpecError(
            f"codes must be [{g.stages * g.groups}, {g.points}], not {list(codes.shape)}"
        )


def _by_step(objective: Objective, codes: Tensor) -> Tensor:
    """Codes [S*G, P] in the order of the steps: [S, steps, codes per step]."""
    g = objective.grouping
    by_stage = codes.view(g.stages, g.groups, g.points)
    return by_stage if objective.orientation == "input" else by_stage.mT


def _largest(gains: Tensor, share: float) -> Tensor:
    """Mark a share of all entries, those with the largest gains: bool, shaped like ``gains``."""
    flat = gains.flatten()
    order = flat.argsort(descending=True, stable=True)[: int(share * len(flat))]
    allowed = torch.zeros_like(flat, dtype=torch.bool)
    allowed[order] = True
    return allowed.view_as(gains)


class _ChunkResults:
    """Codes, decoded core and errors of a layer, collected chunk by chunk."""

    def __init__(self, objective: Objective, sweeps: int) -> None:
        self.objective = objective
        self.by_row = objective.orientation == "input"
        self.codes: list[Tensor] = []
        self.core_hat = torch.empty_like(objective.core)
        self.errors = [0.0] * (sweeps + 1)

    def add(self, chunk: RowChunk, rows: slice, allowed: Tensor | None) -> None:
        """Sweep over the chunk of some rows until no code changes, and collect it."""
        if allowed is not None and self.by_row:
            allowed = allowed[:, rows]
        self.errors[0] += max(0.0, float(chunk.error))
        changed = 1
        for s in range(1, len(self.errors)):
            changed = chunk.sweep(allowed) if changed else 0
            self.errors[s] += max(0.0, float(chunk.error))
        self.core_hat[rows] = self.objective.by_row(chunk.decoded(), rows)
        self.codes.append(chunk.codes)

    def result(self) -> AssignResult:
        """All chunks together, in the units and shapes of the caller."""
        codes = torch.cat(self.codes, dim=2)  # [S, steps, codes per step]
        return AssignResult(
            codes=(codes if self.by_row else codes.mT).flatten(0, 1).contiguous(),
            core_hat=self.core_hat,
            errors=tuple(error * self.objective.hessian.scale for error in self.errors),
        )
