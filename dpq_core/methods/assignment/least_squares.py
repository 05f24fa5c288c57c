"""Closed-form updates of codebooks and pools with codes standing still.

See docs/algorithms.md#codebook-update.

E_out is a quadratic of all codewords together. Its minimum is found by conjugate gradients on the
normal equations, preconditioned with the d x d block of every codeword (what
docs/algorithms.md#codebook-update solves for
one codeword at a time). Unlike updates group by group this is as exact for codewords that many
groups share, directly or through a pool. An iteration costs one product with H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.methods.assignment.assign import AssignResult, assign
from dpq_core.methods.assignment.encoders import Encoder
from dpq_core.methods.assignment.normal import Normal
from dpq_core.methods.assignment.objective import Objective

ITERATIONS = 12  # reach 3 % of the gain for a codebook per group; shared ones need 2 or 3
TOLERANCE = 3e-3  # relative gain of an iteration below which another one is not worth its product
WORTH = 5e-3  # relative gain of a round of fresh codes below which there is no other
CONVERGED = 1e-10  # of the first squared residual: what is left is rounding
ROUNDING = 1e-6  # relative gain of an update below which nothing is touched


@dataclass(frozen=True, kw_only=True)
class CodebookUpdate:
    """Codewords and what they achieve.

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
    """The codewords that minimise E_out for given codes.

    Codewords that no code refers to stay as they are.

    Args:
        objective: the layer.
        codes: int32 [S*G, P], stage by stage.
        codebooks: float32 [S*B, K, d], or the pool [V, d] if there is an index map.
        index_map: [S*B, K], the pool vector of every codeword; None where there is no pool.
        iterations: of conjugate gradients, at most.
    """
    system = Normal(objective, codes, codebooks, index_map)
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
    """Alternate codebook updates and sweeps of coordinate descent.

    Args:
        objective: the layer.
        codes: int32 [S*G, P] to start from.
        codebooks: float32 [S*B, K, d], or the pool [V, d], to start from.
        index_map: [S*B, K] into the pool, if there is one.
        rounds: of an update and a sweep each.
        encoder: makes the encoder for given codebooks [S*B, K, d]; see ``assign``.
    """

    def sweep(codes: Tensor, sweeps: int) -> AssignResult:
        books = _read(codebooks, index_map)
        used = None if encoder is None else encoder(books)
        return assign(objective, books, method="icm", sweeps=sweeps, codes=codes, encoder=used)

    result = sweep(codes, 0)
    errors = [*result.errors]
    for _ in range(rounds):
        update = update_codebooks(objective, result.codes, codebooks, index_map=index_map)
        codebooks = update.codebooks
        result = sweep(result.codes, 1)
        # Both are measured afresh; at a minimum float32 may see them differ in the last digit.
        errors.append(min(errors[-1], update.errors[-1]))
        errors.append(min(errors[-1], result.errors[-1]))
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
    """Alternate fresh codes (error feedback) and codebook updates, and refine the best of them.

    Fresh codes leave the local minimum that ``refine`` stays in. With a codebook per group the
    output error ends 4 to 10 % lower; shared codebooks gain nothing and stop after two rounds.
    Arguments as in ``refine``.
    """

    def fresh(codebooks: Tensor) -> tuple[Tensor, CodebookUpdate]:
        books = _read(codebooks, index_map)
        used = None if encoder is None else encoder(books)
        codes = assign(objective, books, method="ldlq", encoder=used).codes
        return codes, update_codebooks(objective, codes, codebooks, index_map=index_map)

    codes, best = fresh(codebooks)
    latest = best
    for _ in range(rounds - 1):
        found, latest = fresh(latest.codebooks)
        before = best.errors[-1]
        if latest.errors[-1] < before:
            codes, best = found, latest
        if latest.errors[-1] > (1 - WORTH) * before:
            break
    return refine(objective, codes, best.codebooks, index_map=index_map, rounds=2, encoder=encoder)


def _read(codebooks: Tensor, index_map: Tensor | None) -> Tensor:
    """Codebooks [S*B, K, d], through the index map if there is one."""
    return codebooks if index_map is None else codebooks[index_map.long()]
