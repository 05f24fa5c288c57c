"""Calibration without data, on the uncompressed denoiser's inputs and outputs while it draws.

The method is described in docs/algorithms.md#calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpq_core.errors import Hint, SourceError
from dpq_core.run import Progress, silent
from dpq_diffusion.calibration.calls import Call, CallTemplate, Recorder
from dpq_diffusion.calibration.inputs import GuidanceHalves, NoisedData, RecordedCalls
from dpq_diffusion.calibration.processes import Flow, noise_process
from dpq_diffusion.pipelines.class_models import denoiser
from dpq_diffusion.pipelines.conditions import Condition, Item
from dpq_diffusion.sampling.samplers import ClassSampler, Sampler

FIRST_SEED = 1 << 30
"""Seed of the first trajectory, far from those of samples and evaluations, which begin near 0."""

_DRAWN_AT_ONCE = 16
"""Number of images that are drawn at a time."""

_MAX_BYTES = 2 << 30
"""Largest number of bytes of latents and outputs that are kept; beyond it steps are skipped."""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Recorded calls of a denoiser, and the latents that it drew.

    Attributes:
        form: template of all calls.
        calls: the recorded calls of the denoiser.
        first: one call for each group of images that were drawn together.
        final: the latents float32 ``[n, ...]`` that each group ended in; None where the pipeline
            does not show them.
        halves: the two halves of each call's rows; None: no guidance by a second half.
        scale: factor from the scheduler's timesteps to those that the denoiser takes.
    """

    form: CallTemplate
    calls: list[Call]
    first: list[Call]
    final: list[Tensor] | None
    halves: GuidanceHalves | None
    scale: float

    def recorded(self) -> RecordedCalls:
        """The recorded calls as a source of batches."""
        return RecordedCalls(form=self.form, calls=self.calls, halves=self.halves)

    def clean(self, scheduler: Any, dropout: float) -> NoisedData:
        """The drawn latents as clean data, with the conditions under which they were drawn.

        Raises:
            SourceError: the pipeline does not show its latents.
            SpecError: the scheduler runs an unknown process.
        """
        if self.final is None:
            raise SourceError(
                "this pipeline does not show its latents", Hint.of("use {}", loss="distill")
            )
        process = noise_process(scheduler)
        data = torch.cat(self.final)
        own = self.first[0].inputs.keys() - {self.form.sample, self.form.timestep}
        with_it = 0 if self.halves is None else self.halves.conditional
        return NoisedData(
            form=self.form,
            process=process,
            data=data,
            conditions={slot: self._half(slot, with_it) for slot in own},
            null={} if self.halves is None else {s: self._half(s, 1 - with_it) for s in own},
            dropout=dropout,
            scale=self.scale if isinstance(process, Flow) else 1.0,
        )

    def _half(self, slot: int, half: int) -> Tensor:
        """The tensor of a slot with one row per image ``[N, ...]``, from one half of the calls."""
        assert self.final is not None  # the caller has seen to it
        parts = []
        for call, latents in zip(self.first, self.final, strict=True):
            start = 0 if self.halves is None else half * len(latents)
            parts.append(call.inputs[slot][start : start + len(latents)])
        return torch.cat(parts)


def record(
    sampler: Sampler,
    conditions: Sequence[Condition],
    count: int,
    first_seed: int,
    progress: Progress = silent,
) -> Trajectories:
    """Let a pipeline draw images, and record the calls of its denoiser.

    Args:
        sampler: sampler of the uncompressed pipeline.
        conditions: to draw, all of them in turn, in random order.
        count: images.
        first_seed: seed of the first image and of the order; image i has ``first_seed + i``.
        progress: counts images.

    Raises:
        SourceError: the calls cannot be kept, or the model gives NaN.
    """
    items = _random_items(conditions, count, first_seed)
    groups = [items[i : i + _DRAWN_AT_ONCE] for i in range(0, count, _DRAWN_AT_ONCE)]
    steps = sampler.settings.steps

    def is_kept(number: int, nbytes: int) -> bool:
        every = max(1, -(-nbytes * steps * len(groups) // _MAX_BYTES))
        return (number % steps + number // steps) % every == 0

    final: list[Tensor] = []
    first: list[int] = []
    rows: list[int] = []
    with Recorder(denoiser(sampler.pipeline), is_kept) as recorder:
        for done, group in enumerate(groups):
            progress("drawing trajectories", done * _DRAWN_AT_ONCE, count)
            latest: list[Tensor] = []
            before = len(recorder.calls)
            sampler.draw(group, partial(_keep_latest, latest))
            if len(recorder.calls) == before:
                raise SourceError("the pipeline draws without its denoiser; nothing to learn from")
            first.append(before)
            rows.append(len(recorder.calls[before].output) // len(group))
            final += latest
    progress("drawing trajectories", count, count)
    form, calls = recorder.form, recorder.calls
    assert form is not None  # there was a call
    return Trajectories(
        form=form,
        calls=calls,
        first=[calls[i] for i in first],
        final=final if len(final) == len(groups) else None,
        halves=_guidance_halves(sampler) if set(rows) == {2} else None,
        scale=_timestep_scale(sampler, calls[0].inputs[form.timestep]),
    )


def _random_items(conditions: Sequence[Condition], count: int, first_seed: int) -> list[Item]:
    random = np.random.default_rng(first_seed)
    order: list[int] = []
    while len(order) < count:
        order += random.permutation(len(conditions)).tolist()
    return [
        Item(index=i, seed=first_seed + i, condition=conditions[order[i]]) for i in range(count)
    ]


def _keep_latest(latest: list[Tensor], _: int, latents: Tensor) -> None:
    latest[:] = [latents.detach().float().cpu()]


def _guidance_halves(sampler: Sampler) -> GuidanceHalves:
    """The halves of guided calls: dpq's loop puts the condition first, diffusers second."""
    conditional = 0 if isinstance(sampler, ClassSampler) else 1
    return GuidanceHalves.of(sampler.settings.guidance, conditional)


def _timestep_scale(sampler: Sampler, timesteps: Tensor) -> float:
    """The factor from the scheduler's timesteps to the denoiser's; FLUX takes sigmas instead."""
    largest = float(sampler.pipeline.scheduler.timesteps[0])
    return float(timesteps[0]) / largest if largest else 1.0
