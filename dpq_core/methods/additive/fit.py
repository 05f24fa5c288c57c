"""Fit of additive codebooks and codes in turns: exact least squares, then new codes.

See docs/algorithms.md#additive-fit. Codebooks are fitted in closed form where AQLM (arXiv
2401.06118, section 3.3) takes 100 Adam steps, and with the fading noise of LSQ++ (SR-C,
docs/algorithms.md#kmeans).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.grouping import Grouping
from dpq_core.methods.additive.beam import beam_search, squared_errors, sweep

SOLVER_STEPS = 64
"""Steps of conjugate gradients, at most; 10 to 30 reach the tolerance."""

SOLVER_TOLERANCE = 1e-10
"""Squared residual of the normal equations, relative to the first, at which the solver stops."""

SOLVER_PRECISION = 1e-24
"""Squared residual, relative to the codewords, below which it is rounding: the solver stops."""


@dataclass(frozen=True, kw_only=True)
class RoundStats:
    """Record of one round of ``alternate``.

    Attributes:
        updated: weighted mean squared distance per subvector, after the codebook update.
        objective: the same after the new codes; never above ``updated``.
        moved: subvectors with a new code in any stage.
    """

    updated: float
    objective: float
    moved: int


@dataclass(frozen=True, kw_only=True)
class AdditiveResult:
    """Additive codebooks and codes.

    Attributes:
        codebooks: float32 [S*B, K, d], stage by stage.
        codes: int32 [S*G, P], stage by stage.
        stats: one record per round of ``alternate``.
    """

    codebooks: Tensor
    codes: Tensor
    stats: tuple[RoundStats, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AlternateSpec:
    """Rounds, search and noise of ``alternate``.

    Attributes:
        rounds: codebook updates, each followed by new codes, at most.
        beam: partial sums kept by the beam search for new codes; 0 leaves the search out.
        sweeps: sweeps of coordinate descent on the better of the old and the new codes.
        noise: noise on the subvectors in all codebook updates but the last two, in standard
            deviations of their group. It fades as sqrt(1 - i / rounds) (SR-C of LSQ++), lets
            codewords escape poor minima, and pays from about six rounds on. 0: none.
        tolerance: stop when a round without noise lowers the error by less than this share.
        seed: seed of the noise.
    """

    rounds: int = 10
    beam: int = 4
    sweeps: int = 1
    noise: float = 0.2
    tolerance: float = 1e-3
    seed: int = 0

    def scale(self, i: int) -> float:
        """The noise of round i, in standard deviations."""
        return self.noise * (1 - (i + 1) / self.rounds) ** 0.5 if i < self.rounds - 2 else 0.0


def alternate(
    subvectors: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    grouping: Grouping,
    *,
    weights: Tensor | None = None,
    spec: AlternateSpec,
) -> AdditiveResult:
    """Update codebooks and codes in turns; returns the best round, or the start.

    A round without noise never raises the weighted squared error.

    Args:
        subvectors: float32 [G, d, P].
        codebooks: float32 [S*B, K, d], for example of ``residual_kmeans``.
        codes: int32 [S*G, P].
        grouping: grouping of the subvectors.
        weights: float32 [G, P] or None.
        spec: rounds, noise, search.
    """
    task = _Task(points=subvectors, grouping=grouping, weights=weights)
    generator = torch.Generator(subvectors.device).manual_seed(spec.seed)
    now = task.state(codebooks, codes)
    best, stats = now, []
    for i in range(spec.rounds):
        before, scale = now, spec.scale(i)
        fitted = task.fit(now, scale, generator)
        # Without noise only rounding can make an update worse: then it was at the minimum.
        start = fitted if scale > 0 or fitted.objective <= now.objective else now
        now = task.encode(start, spec)
        moved = (now.codes != before.codes).view(grouping.stages, -1).any(dim=0)
        stats.append(
            RoundStats(updated=start.objective, objective=now.objective, moved=int(moved.sum()))
        )
        best = min(best, now, key=lambda state: state.objective)
        if scale == 0 and before.objective - now.objective <= spec.tolerance * before.objective:
            break
    return AdditiveResult(codebooks=best.codebooks, codes=best.codes, stats=tuple(stats))


@dataclass(frozen=True, kw_only=True)
class _State:
    """Codebooks and codes after a step, their squared errors [G, P] and the weighted mean."""

    codebooks: Tensor
    codes: Tensor
    errors: Tensor
    objective: float


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Subvectors [G, d, P], grouping and weights [G, P] of one call of ``alternate``."""

    points: Tensor
    grouping: Grouping
    weights: Tensor | None

    def state(self, codebooks: Tensor, codes: Tensor) -> _State:
        """The state of some codebooks and codes."""
        errors = squared_errors(self.points, codebooks, codes, self.grouping)
        if self.weights is None:
            objective = float(errors.double().mean())
        else:
            weights = self.weights.expand(errors.shape).to(errors.device, torch.float64)
            objective = float((errors * weights).sum() / weights.sum())
        return _State(codebooks=codebooks, codes=codes, errors=errors, objective=objective)

    def fit(self, now: _State, noise: float, generator: torch.Generator) -> _State:
        """The state with codebooks fitted to points with noise (in standard deviations)."""
        points = self.points
        if noise > 0:
            normal = torch.randn(points.shape, generator=generator, device=points.device)
            points = normal.mul_(noise * points.std(dim=2, correction=0, keepdim=True)).add_(points)
        fitted = fit_codebooks(
            points, now.codebooks, now.codes, self.grouping, weights=self.weights
        )
        return self.state(fitted, now.codes)

    def encode(self, now: _State, spec: AlternateSpec) -> _State:
        """The state with new codes, none of which is worse than the code of ``now``."""
        books, codes = now.codebooks, now.codes
        if spec.beam:
            searched = beam_search(self.points, books, self.grouping, beam=spec.beam)
            better = self.state(books, searched).errors < now.errors
            codes = torch.where(better.repeat(self.grouping.stages, 1), searched, codes)
        for _ in range(spec.sweeps):
            codes = sweep(self.points, books, codes, self.grouping)
        return self.state(books, codes)


def fit_codebooks(
    points: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    grouping: Grouping,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """The codebooks that minimise the weighted squared error with the codes fixed.

    All codewords of a codebook set at once, by conjugate gradients on the normal equations, whose
    matrix (S*K squared co-occurrences) is never formed. Every step lowers the error; a codeword
    without members stays as it is.

    Args:
        points: subvectors, float32 [G, d, P].
        codebooks: float32 [S*B, K, d], the start.
        codes: int32 [S*G, P].
        grouping: grouping of the points.
        weights: float32 [G, P] or None.

    Returns:
        Codebooks, float32 [S*B, K, d].
    """
    from dpq_core.kernels.cpu.additive import scatter_residual  # numba loads on first use

    G, _, P = points.shape
    stages = grouping.stages
    by_stage = codes.view(stages, G, P)
    words = codebooks.view(stages, -1, *codebooks.shape[1:]).double()
    if weights is not None:
        weights = weights.expand(G, P).to(points)

    def residual(x: Tensor | None, at: Tensor) -> Tensor:
        """The negative half gradient at codewords ``at`` for points x, or for x = 0."""
        return scatter_residual(x, by_stage, at, grouping, weights=weights)

    # The weight of a codeword's members is the diagonal of the normal matrix: the residual of x = 0
    # where the codewords of every point add up to -1.
    members = residual(None, torch.full_like(words, -1 / stages))
    return _solve(residual, residual(points, words), words, members).float().view(codebooks.shape)


def _solve(
    residual: Callable[[Tensor | None, Tensor], Tensor], r: Tensor, words: Tensor, members: Tensor
) -> Tensor:
    """Codewords float64 [S, B, K, d] by conjugate gradients with a Jacobi preconditioner.

    Each codebook set and coordinate is a system of its own with S*K unknowns, so all sums run over
    stages and codewords.

    Args:
        residual: computes the negative half gradient at some codewords, for points or for zero.
        r: the negative half gradient for the points at ``words``.
        words: the start.
        members: the diagonal of the normal matrix.
    """
    inverse = torch.where(members > 0, 1 / members, 0)
    z = inverse * r
    direction, rz = z, _inner(r, z)
    goal = torch.maximum(rz * SOLVER_TOLERANCE, _inner(members * words, words) * SOLVER_PRECISION)
    for _ in range(SOLVER_STEPS):
        product = -residual(None, direction)
        step = torch.where(rz > goal, _ratio(rz, _inner(direction, product)), 0)
        words = words + step * direction
        r = r - step * product
        z = inverse * r
        before, rz = rz, _inner(r, z)
        if bool((rz <= goal).all()):
            break
        direction = z + _ratio(rz, before) * direction
    return words


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of [S, B, K, d] over stages and codewords: [1, B, 1, d]."""
    return (a * b).sum((0, 2), keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """The ratio a / b, or 0 where b is 0: a system that is solved stays."""
    return torch.where(b > 0, a / b, 0)
