"""A phase of calibration that chooses the codes of one block among candidates (arXiv 2408.17131).

During the phase, each quantized weight of the block decodes to a mixture of the codewords nearest
to its original. Its parts stay as they are until codes are chosen; codebooks are trained
afterwards, by an ordinary phase. See docs/algorithms.md#candidates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import replace as changed

import torch
from torch import Tensor

from dpq_core.calibrate.candidate_training import CandidateSpec, ChoiceTraining
from dpq_core.calibrate.dead_codewords.codewords import codes_of
from dpq_core.calibrate.estep import ReadOriginal, core_of, detached, set_codes, stats_of, total
from dpq_core.calibrate.layers import QuantizedLayer
from dpq_core.calibrate.phases import Goal, Phase
from dpq_core.calibrate.report import Assigned
from dpq_core.calibrate.state import LoopState, Tensors
from dpq_core.calibrate.train import Context, Watch
from dpq_core.data.task import EStepStats
from dpq_core.errors import SpecError
from dpq_core.methods.candidates import CandidateWeight
from dpq_core.runtime.weight import PQWeight


class Choosing:
    """The phase that chooses the codes of one block's weights among candidates."""

    def __init__(self, context: Context, phase: Phase, goal: Goal, target: ReadOriginal) -> None:
        """Keep what the phase works on.

        Args:
            context: what all phases of the run share.
            phase: title and number of steps.
            goal: goal of the block; its parameters are not trained.
            target: reads original weights.
        """
        self._context, self._phase, self._goal, self._target = context, phase, goal, target

    def run(self, state: LoopState, watch: Watch) -> None:
        """Train the logits and choose codes; codes that raise the block's loss are taken back.

        Raises:
            SpecError: the loss is not finite; the student is as it was.
        """
        context, goal = self._context, self._goal
        weights = [layer.weight for layer in goal.layers]
        mixtures = [self._mixture(layer) for layer in goal.layers]
        before, codes = context.mean(goal.loss, goal.validation), [codes_of(w) for w in weights]
        nearest = self._nearest(weights, [mixture.candidates[0] for mixture in mixtures])
        unit = nearest or 1.0

        def loss(step: int) -> tuple[Tensor, float]:
            batch, share = goal.batch(step)
            with context.precision():
                return goal.loss(batch) / unit, share

        spec = CandidateSpec(steps=self._phase.steps, codebook_rate=0.0)
        with mixing(weights, mixtures):
            for record in ChoiceTraining(mixtures, loss, spec, workers=context.workers).steps():
                if not math.isfinite(record.error):
                    raise SpecError(
                        "calibrate: the loss is not finite; look for damaged values in the data"
                    )
                state.step, state.done = state.step + 1, state.done + 1
                watch(record.error * unit)
        self._write_codes(state, before, codes, [mixture.harden() for mixture in mixtures])

    def resumable(self, state: LoopState) -> LoopState:
        """The state from which an interrupted run resumes: the beginning of the block."""
        return changed(state, step=0, done=state.done - state.step)

    def tensors(self) -> dict[str, Tensors]:
        """No tensors: a resumed run begins the block again, and the student is unchanged."""
        return {}

    def load(self, saved: Mapping[str, Tensors]) -> None:
        """The inverse of ``tensors``."""

    def _mixture(self, layer: QuantizedLayer) -> CandidateWeight:
        """The candidates of a layer: the codewords nearest to its original weight."""
        weight, p = layer.weight, layer.weight.partition
        core = core_of(detached(weight.frame()), p.to_matrix(self._target(layer)))
        count = min(self._context.settings.candidates, p.K**p.stages)
        return CandidateWeight(p, p.to_subvectors(core), weight.books().detach(), n=count)

    def _nearest(self, weights: Sequence[PQWeight], codes: Sequence[Tensor]) -> float:
        """The training loss with some codes; the student's codes are put back afterwards."""
        packed = [weight.codes.clone() for weight in weights]
        _set_all(weights, codes)
        count = self._context.settings.block_batches
        loss = self._context.mean(self._goal.loss, [self._goal.batch(i) for i in range(count)])
        for weight, original_codes in zip(weights, packed, strict=True):
            weight.codes.copy_(original_codes)
        return loss

    def _write_codes(
        self, state: LoopState, before: float, old: Sequence[Tensor], new: Sequence[Tensor]
    ) -> None:
        """Write the chosen codes, unless they raise the block's loss on the validation batches."""
        context, weights = self._context, [layer.weight for layer in self._goal.layers]
        _set_all(weights, new)
        context.workers.agree(weight.codes for weight in weights)
        after = context.mean(self._goal.loss, self._goal.validation)
        stats = total([_stats(*each) for each in zip(weights, old, new, strict=True)])
        kept = math.isfinite(after) and after <= before
        if not kept:
            _set_all(weights, old)
        record = Assigned(
            phase=self._phase.title,
            step=state.step,
            what="candidates",
            before=before,
            after=after,
            kept=kept,
            **asdict(stats),
        )
        state.esteps.append(record)


@contextmanager
def mixing(weights: Sequence[PQWeight], mixtures: Sequence[CandidateWeight]) -> Iterator[None]:
    """Within the ``with`` block, quantized weights decode to their mixtures, with gradients.

    Their parameters and buffers stay as they are, so that a state may be saved meanwhile.

    Args:
        weights: quantized weights in their trainable form.
        mixtures: candidates of the same sizes, in the frames of the weights.
    """
    for weight, mixture in zip(weights, mixtures, strict=True):
        chunks = functools.partial(_core_chunks, weight, mixture)
        vars(weight).update(core_chunks=chunks, rows=functools.partial(_rows, weight))
    try:
        yield
    finally:
        for weight in weights:
            for name in ("core_chunks", "rows"):
                vars(weight).pop(name, None)


def _core_chunks(
    weight: PQWeight,
    mixture: CandidateWeight,
    dtype: torch.dtype,
    *,
    scaled: bool = True,
    tiled: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """``PQWeight.core_chunks`` of a mixture, in one piece."""
    core, scale = mixture.core(), weight.parts().get("row_scale") if scaled else None
    if scale is not None:
        core = core * scale.float()[:, None]
    yield 0, core.to(dtype)


def _rows(weight: PQWeight, index: Tensor, dtype: torch.dtype) -> Tensor:
    """``PQWeight.rows`` of a weight that decodes to its mixture."""
    return weight.partition.to_matrix(weight.decode(dtype))[index]


def _set_all(weights: Sequence[PQWeight], codes: Sequence[Tensor]) -> None:
    for weight, chosen in zip(weights, codes, strict=True):
        set_codes(weight, chosen)


def _stats(weight: PQWeight, old: Tensor, new: Tensor) -> EStepStats:
    return changed(stats_of(weight, new), changed=int((old != new).sum()))
