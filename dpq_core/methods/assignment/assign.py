"""Codes that reconstruct a layer's output, not its weights.

See docs/algorithms.md#assignment, #assign-ldlq.

``l2``         nearest codeword of every subvector
``blockdiag``  nearest under the block H_jj ("And the bit goes down", arXiv 1907.05686)
``icm``        coordinate descent: each code is chosen anew with all others standing still
``ldlq``       error feedback from the last column group to the first (QuIP#, arXiv 2402.04396)
``ldlq+icm``   both, one after the other
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.methods.assignment.encoders import Encoder, InputSteps, OutputSteps, Steps
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.assignment.sweeps import Chunk

METHODS = ("l2", "blockdiag", "icm", "ldlq", "ldlq+icm")


@dataclass(frozen=True, kw_only=True)
class AssignResult:
    """Codes and what they achieve.

    Attributes:
        codes: int32 [S*G, P], stage by stage.
        core_hat: float32 [R, C], the decoded core.
        errors: damped E_out in the units of the measured H: of the start, then after each sweep.
            Never rises.
        changed: codes (subvectors) that each sweep changed.
    """

    codes: Tensor
    core_hat: Tensor
    errors: tuple[float, ...]
    changed: tuple[int, ...]


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
        method: one of ``METHODS``.
        sweeps: of coordinate descent, for the methods that have any; ends early when none moves.
        codes: int32 [S*G, P] to start coordinate descent from (method ``icm``); else from ``l2``.
        limit: share of all subvectors, 0..1, whose codes may change at all (method ``icm``): those
            that could lower the error most at the start.
        encoder: how a group is encoded; nearest codeword, stage by stage, unless given.

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

    def chunk(rows: slice) -> Chunk:
        steps: Steps = (
            InputSteps(objective, books, encoder, objective.weights(rows))
            if by_row
            else OutputSteps(objective, books)
        )
        made = Chunk(objective.by_column(rows), objective.hessian, steps, stages)
        made.start(method, start if start is None or not by_row else start[..., rows])
        return made

    allowed = None
    if limit < 1:
        gains = [chunk(rows).gains() for rows in objective.chunks()]
        allowed = _largest(torch.cat(gains, dim=1), limit)
    total = _Total(objective, sweeps if method in ("icm", "ldlq+icm") else 0)
    for rows in objective.chunks():
        total.add(chunk(rows), rows, allowed)
    return total.result()


def _check(objective: Objective, codebooks: Tensor, method: str, codes: Tensor | None) -> None:
    """Raise SpecError unless codebooks and codes fit the objective and the method is known."""
    g = objective.grouping
    if method not in METHODS:
        raise SpecError(f"unknown assignment {method!r}; choose one of {', '.join(METHODS)}")
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
    """[S*G, P] -> [S, steps, codes per step]."""
    g = objective.grouping
    by_stage = codes.view(g.stages, g.groups, g.points)
    return by_stage if objective.orientation == "input" else by_stage.mT


def _largest(gains: Tensor, share: float) -> Tensor:
    """The ``share`` of all entries with the largest gain: bool, shaped like ``gains``."""
    flat = gains.flatten()
    order = flat.argsort(descending=True, stable=True)[: int(share * len(flat))]
    allowed = torch.zeros_like(flat, dtype=torch.bool)
    allowed[order] = True
    return allowed.view_as(gains)


class _Total:
    """The chunks of a layer, swept over and put together."""

    def __init__(self, objective: Objective, sweeps: int) -> None:
        self.objective = objective
        self.by_row = objective.orientation == "input"
        self.codes: list[Tensor] = []
        self.core_hat = torch.empty_like(objective.core)
        self.errors = [0.0] * (sweeps + 1)
        self.changed = [0] * sweeps

    def add(self, chunk: Chunk, rows: slice, allowed: Tensor | None) -> None:
        """Sweep over a chunk until nothing moves; ``rows`` is where it belongs."""
        if allowed is not None and self.by_row:
            allowed = allowed[:, rows]
        self.errors[0] += max(0.0, float(chunk.error))
        moved = 1
        for s in range(len(self.changed)):
            moved = chunk.sweep(allowed) if moved else 0
            self.changed[s] += moved
            self.errors[s + 1] += max(0.0, float(chunk.error))
        self.core_hat[rows] = self.objective.by_row(chunk.decoded(), rows)
        self.codes.append(chunk.codes)

    def result(self) -> AssignResult:
        """Everything in the units and shapes of the caller."""
        codes = torch.cat(self.codes, dim=2)  # [S, steps, codes per step]
        return AssignResult(
            codes=(codes if self.by_row else codes.mT).flatten(0, 1).contiguous(),
            core_hat=self.core_hat,
            errors=tuple(error * self.objective.hessian.scale for error in self.errors),
            changed=tuple(self.changed),
        )
