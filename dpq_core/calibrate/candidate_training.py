"""Training of candidate sets on the output of one block (VQ4DiT, arXiv 2408.17131).

See docs/algorithms.md#candidates.

The caller walks over the blocks of a model, puts a ``CandidateWeight`` in place of every weight of
one block (``dpq_core.methods.candidates.install``), trains, and goes on with plain codes, so that
the logits of one block exist at a time. Calibration does so with weights that are quantized already
(``dpq_core.calibrate.candidates``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.calibrate.distributed import Workers
from dpq_core.errors import SpecError
from dpq_core.methods.candidates import CandidateWeight, Regulariser

Run = Callable[[Any], Tensor]
"""The output of the block for one entry of the inputs."""

Loss = Callable[[int], tuple[Tensor, float]]
"""The error of step i on this process's samples, relative to that of the nearest codewords, and the
share of these samples among those of all processes."""


@dataclass(frozen=True, kw_only=True)
class CandidateSpec:
    """Settings of ``train_candidates``; rates and thresholds are those of the released VQ4DiT.

    On a small block with correlated inputs, over all starts and strengths, the release's
    regulariser ended lower than the paper's (0.17 of the nearest codewords' error, 0.21); strengths
    of 1 to 10 differ little.

    Attributes:
        steps: steps on the logits, one batch each.
        codebook_steps: steps on the codebooks, after the codes of all weights are chosen.
        logit_rate: learning rate of the logits.
        codebook_rate: learning rate of the codebooks (whose subvectors have unit RMS where rows are
            scaled); 0 trains logits only.
        smoothing: alpha of RMSprop.
        strength: weight of the regulariser, where 1 is the error of the nearest codewords; it
            grows linearly over the steps, so that the data decide first.
        regulariser: see ``CandidateWeight.regulariser``.
        freeze_above: a subvector whose largest ratio exceeds this is frozen.
        harden_at: a weight with a larger share of frozen subvectors takes its codes for good.
    """

    steps: int = 400
    codebook_steps: int = 50
    logit_rate: float = 5e-2
    codebook_rate: float = 1e-4
    smoothing: float = 0.9
    strength: float = 3.0
    regulariser: Regulariser = "release"
    freeze_above: float = 0.99
    harden_at: float = 0.99


@dataclass(frozen=True, kw_only=True)
class CandidateStep:
    """The record of one step.

    Attributes:
        error: mean squared error of the batch, relative to the nearest codewords' on all batches.
        regulariser: value of the regulariser, mean over the weights.
        frozen: share of frozen subvectors, mean over the weights.
    """

    error: float
    regulariser: float
    frozen: float


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """The result of ``train_candidates``.

    Attributes:
        codes: int32 ``[S*G, P]`` per weight, by the name of its module in the block.
        nearest_error: mean squared error of the block's output with the nearest codewords.
        error: the same with the chosen codes and the trained codebooks.
        stats: one record per step.
    """

    codes: dict[str, Tensor]
    nearest_error: float
    error: float
    stats: tuple[CandidateStep, ...]


def train_candidates(
    block: nn.Module,
    inputs: Sequence[Any],
    targets: Sequence[Tensor],
    spec: CandidateSpec,
    *,
    run: Run | None = None,
) -> CandidateResult:
    """Choose the codes of all ``CandidateWeight`` modules in ``block``, in place.

    Args:
        block: computes its output from those weights; nothing else in it changes.
        inputs: one entry per batch.
        targets: output of the uncompressed block for each entry.
        spec: steps, rates, regulariser.
        run: calls the block on an entry; None for ``block(entry)``.

    Raises:
        SpecError: no candidate weights in the block, or inputs and targets do not match.
    """
    weights = {n: m for n, m in block.named_modules() if isinstance(m, CandidateWeight)}
    if not weights:
        raise SpecError("the block has no candidate weights; install them first")
    if not inputs or len(inputs) != len(targets):
        raise SpecError(f"{len(inputs)} inputs do not match {len(targets)} targets")
    batches, call = list(zip(inputs, targets, strict=True)), run or block
    candidates = list(weights.values())
    with _nearest(candidates):
        nearest_error = _error(batches, call)
    unit = nearest_error or 1.0

    def loss(i: int) -> tuple[Tensor, float]:
        entry, target = batches[i % len(batches)]
        return nn.functional.mse_loss(call(entry), target) / unit, 1.0

    training = ChoiceTraining(candidates, loss, spec)
    stats = tuple(training.steps())
    codes = {name: weight.harden() for name, weight in weights.items()}
    training.fit_codebooks()
    error = _error(batches, call)
    return CandidateResult(codes=codes, nearest_error=nearest_error, error=error, stats=stats)


class ChoiceTraining:
    """The optimizer of candidate logits and of the codebooks of weights whose codes are chosen.

    Gradients of anything else are neither computed nor touched.
    """

    def __init__(
        self,
        weights: Sequence[CandidateWeight],
        loss: Loss,
        spec: CandidateSpec,
        *,
        workers: Workers | None = None,
    ) -> None:
        """Set up the optimizer; nothing is trained yet.

        Args:
            weights: the weights to train; the loss decodes them.
            loss: loss of a step.
            spec: steps, rates, regulariser.
            workers: processes over which gradients are summed; None for this process alone.
        """
        self._weights, self._loss, self._spec, self._workers = weights, loss, spec, workers
        groups = [{"params": [w.logits for w in weights], "lr": spec.logit_rate}]
        if spec.codebook_rate:
            groups.append({"params": [w.codebooks for w in weights], "lr": spec.codebook_rate})
        self._optimizer = torch.optim.RMSprop(groups, alpha=spec.smoothing)

    def steps(self) -> Iterator[CandidateStep]:
        """Train the logits until the codes of all weights are chosen, or the steps are over."""
        for i in range(self._spec.steps):
            frozen = [weight.freeze(self._spec.freeze_above) for weight in self._weights]
            for weight, share in zip(self._weights, frozen, strict=True):
                if share > self._spec.harden_at:
                    weight.harden()
            if not any(weight.logits.requires_grad for weight in self._weights):
                return
            penalties = [weight.regulariser(self._spec.regulariser) for weight in self._weights]
            penalty = torch.stack(penalties).mean()
            strength = self._spec.strength * (i + 1) / self._spec.steps
            error = self._step(i, strength * penalty)
            yield CandidateStep(
                error=error,
                regulariser=float(penalty.detach()),
                frozen=math.fsum(frozen) / len(frozen),
            )

    def fit_codebooks(self) -> None:
        """Train the codebooks of the weights whose codes are chosen."""
        for i in range(self._spec.codebook_steps if self._spec.codebook_rate else 0):
            self._step(i, torch.zeros(()))

    def _step(self, i: int, penalty: Tensor) -> float:
        """One update; returns the error of all samples before it."""
        error, share = self._loss(i)
        self._optimizer.zero_grad(set_to_none=True)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        trained = [p for p in parameters if p.requires_grad]
        # Shares add up to 1 over the processes, so that the penalty counts once.
        whole = (error + penalty.to(error.device)) * share
        gradients = torch.autograd.grad(whole, trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        value = error.detach() * share
        if self._workers is not None:
            self._workers.sum_gradients(trained)
            value = self._workers.sum(value)
        self._optimizer.step()
        return float(value)


@torch.no_grad()
def _error(batches: Sequence[tuple[Any, Tensor]], run: Run) -> float:
    """Mean squared error over all batches."""
    errors = [(run(entry) - target).square().sum(dtype=torch.float64) for entry, target in batches]
    return float(torch.stack(errors).sum()) / sum(target.numel() for _, target in batches)


@contextmanager
def _nearest(weights: list[CandidateWeight]) -> Iterator[None]:
    """Within the ``with`` block, every subvector takes its nearest codeword."""
    before = [(weight.logits.data, weight.frozen.clone()) for weight in weights]
    for weight in weights:
        weight.logits.data = torch.zeros_like(weight.logits)
        weight.logits.data[0] = 1
        weight.frozen.fill_(True)
    try:
        yield
    finally:
        for weight, (logits, frozen) in zip(weights, before, strict=True):
            weight.logits.data = logits
            weight.frozen.copy_(frozen)
