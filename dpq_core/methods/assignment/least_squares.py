"""Closed-form updates of codebooks and pools with the codes fixed.

E_out is a quadratic of all codewords together. Its minimum is found by conjugate gradients on the
normal equations, preconditioned with the d x d block of every codeword
(docs/algorithms.md#codebook-update). Unlike updates group by group this is as exact for codewords
that many groups share, directly or through a pool. An iteration costs one product with H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.methods.assignment.assign import AssignResult, assign
from dpq_core.methods.assignment.encoders import Encoder
from dpq_core.methods.assignment.normal import NormalEquations
from dpq_core.methods.assignment.objective import Objective

ITERATIONS = 12  # come within 3 % of the gain for a codebook per group; shared ones need 2 or 3
TOLERANCE = 3e-3  # relative gain of an iteration below which it is the last
MIN_ROUND_GAIN = 5e-3  # relative gain of a round of fresh codes below which it is the last
CONVERGED = 1e-10  # squared residual, over the first one, below which it is rounding
ROUNDING = 1e-6  # relative gain of an update below which codewords stay as they are


@dataclass(frozen=True, kw_only=True)
class CodebookUpdate:
    """Updated codewords, and the output error that they leave.

    Attributes:
        codebooks: float32, shaped like those given.
        errors: damped E_out in the units of the measured H: before, then after each iteration.
            Never rises.
    """

    codebooks: Tensor
    errors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RefinedCodebooks:
    """Codes and codebooks after alternating updates.

    Attributes:
        codes: int32 [S*G, P].
        codebooks: float32, shaped like those given.
        core_hat: float32 [R, C].
        errors: damped E_out in the units of the measured H: before, then after each update and each
            sweep. Never rises.
    """

    codes: Tensor
    codebooks: Tensor
    core_hat: Tensor
    errors: tuple[float, ...]


def update_codebooks(
    objective: Objective,
    codes: Tensor,
    codebooks: Tensor,
    *,
    index_map: Tensor | None = None,
    iterations: int = ITERATIONS,
) -> CodebookUpdate:
    """Compute the codewords that minimise E_out for given codes.

    Codewords that no code refers to stay as they are.

    Args:
        objective: the layer.
        codes: int32 [S*G, P], stage by stage.
        codebooks: float32 [S*B, K, d], or the pool [V, d] if there is an index map.
        index_map: [S*B, K], the pool vector of every codeword; None where there is no pool.
        iterations: iterations of conjugate gradients, at most.
    """
    system = NormalEquations(objective, codes, codebooks, index_map)
    gradient, before = system.gradient(codebooks)
    inverse = system.preconditioner()
    total, direction = torch.zeros_like(gradient), torch.zeros_like(gradient)
    norm, first = 1.0, 0.0
    errors = [before]
    for _ in range(iterations):
        steepest = (inverse @ gradient[..., None])[..., 0]
        last_norm, norm = norm, float((gradient * steepest).sum())
        first = first or norm
        if norm <= CONVERGED * first:
            break
        direction = steepest + norm / last_norm * direction
        slope = float((gradient * direction).sum())
        image, curvature = system.normal(direction)
        if curvature <= 0:  # codewords that the decoded layer does not notice
            break
        total += slope / curvature * direction
        gradient -= slope / curvature * image
        errors.append(max(0.0, errors[-1] - slope * slope / curvature))
        if errors[-2] - errors[-1] <= TOLERANCE * errors[-1]:
            break
    if before - errors[-1] <= ROUNDING * before:
        return CodebookUpdate(codebooks=codebooks, errors=(before * objective.hessian.scale,))
    updated = (codebooks.double() + total.view_as(codebooks)).float()
    scaled = tuple(error * objective.hessian.scale for error in errors)
    return CodebookUpdate(codebooks=updated, errors=scaled)


def refine(
    objective: Objective,
    codes: Tensor,
    codebooks: Tensor,
    *,
    index_map: Tensor | None = None,
    rounds: int = 1,
    encoder: Callable[[Tensor], Encoder] | None = None,
) -> RefinedCodebooks:
    """Refine codebooks and codes by updates and sweeps of coordinate descent in turns.

    Args:
        objective: the layer.
        codes: int32 [S*G, P] to start from.
        codebooks: float32 [S*B, K, d], or the pool [V, d], to start from.
        index_map: [S*B, K] into the pool, if there is one.
        rounds: rounds of an update and a sweep each.
        encoder: makes the encoder for given codebooks [S*B, K, d]; see ``assign``.
    """

    def sweep(codes: Tensor, sweeps: int) -> AssignResult:
        """Sweeps of coordinate descent from some codes, for the latest codebooks."""
        books = _read_codebooks(codebooks, index_map)
        encode = None if encoder is None else encoder(books)
        return assign(objective, books, method="icm", sweeps=sweeps, codes=codes, encoder=encode)

    result = sweep(codes, 0)
    errors = [*result.errors]
    for _ in range(rounds):
        codebooks = update_codebooks(
            objective, result.codes, codebooks, index_map=index_map
        ).codebooks
        result = sweep(result.codes, 1)
        # Both are measured afresh; at a minimum float32 may see them differ in the last digit.
        errors += [min(errors[-1], error) for error in (result.errors[0], result.errors[-1])]
    return RefinedCodebooks(
        codes=result.codes, codebooks=codebooks, core_hat=result.core_hat, errors=tuple(errors)
    )


def relearn(
    objective: Objective,
    codebooks: Tensor,
    *,
    index_map: Tensor | None = None,
    rounds: int = 4,
    encoder: Callable[[Tensor], Encoder] | None = None,
) -> RefinedCodebooks:
    """Learn codebooks and codes from fresh codes (error feedback) and updates in turns.

    The best of them is refined in the end.

    Fresh codes leave the local minimum that ``refine`` stays in. With a codebook per group the
    output error ends 4 to 10 % lower; shared codebooks gain nothing and stop after two rounds.
    Arguments as in ``refine``.
    """

    def fresh_codes(codebooks: Tensor) -> tuple[Tensor, CodebookUpdate]:
        """Codes by error feedback, and the codebooks updated for them."""
        books = _read_codebooks(codebooks, index_map)
        encode = None if encoder is None else encoder(books)
        codes = assign(objective, books, method="ldlq", encoder=encode).codes
        return codes, update_codebooks(objective, codes, codebooks, index_map=index_map)

    codes, best = fresh_codes(codebooks)
    latest = best
    for _ in range(rounds - 1):
        latest_codes, latest = fresh_codes(latest.codebooks)
        before = best.errors[-1]
        if latest.errors[-1] < before:
            codes, best = latest_codes, latest
        if latest.errors[-1] > (1 - MIN_ROUND_GAIN) * before:
            break
    return refine(objective, codes, best.codebooks, index_map=index_map, rounds=2, encoder=encoder)


def _read_codebooks(codebooks: Tensor, index_map: Tensor | None) -> Tensor:
    """The codebooks [S*B, K, d], read through the index map where there is one."""
    return codebooks if index_map is None else codebooks[index_map.long()]
