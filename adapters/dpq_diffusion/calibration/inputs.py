"""Sources of training batches: clean data with noise added, or recorded calls of the denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpq_diffusion.calibration.calls import Call, CallTemplate, gather_batch, slot_key
from dpq_diffusion.calibration.processes import NoiseProcess


class BatchSource(ABC):
    """A source of batches for one denoiser.

    Attributes:
        form: template of its calls.
    """

    form: CallTemplate

    @abstractmethod
    def draw(self, random: np.random.Generator, count: int) -> dict[str, Tensor]:
        """A random batch: tensors ``[count, ...]`` of the call (``slot_key``) and of the loss.

        It is random through ``random`` alone.
        """


@dataclass(frozen=True, kw_only=True)
class NoisedData(BatchSource):
    """Clean data to which noise is added anew for every batch.

    Attributes:
        form: how the denoiser is called.
        process: the noise process.
        data: float32 ``[N, ...]``.
        conditions: slot -> ``[N, ...]``.
        null: slot -> ``[N, ...]`` or ``[1, ...]``, in place of the conditions where they are left
            out; empty: never.
        dropout: share of samples for which that is.
        scale: the denoiser takes the scheduler's timesteps times this.
    """

    form: CallTemplate
    process: NoiseProcess
    data: Tensor
    conditions: Mapping[int, Tensor]
    null: Mapping[int, Tensor]
    dropout: float = 0.0
    scale: float = 1.0

    def draw(self, random: np.random.Generator, count: int) -> dict[str, Tensor]:
        """A batch of noisy data, with its noise levels and with some of the conditions dropped."""
        generator = torch.Generator().manual_seed(int(random.integers(1 << 62)))
        rows = torch.randint(len(self.data), (count,), generator=generator)
        clean = self.data[rows]
        noise = torch.randn(clean.shape, generator=generator)
        levels = self.process.levels(count, generator)
        dropped = torch.rand(count, generator=generator) < self.dropout
        noisy = self.process.noised(clean, noise, levels)
        times = self.process.timesteps(levels)
        batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
        batch[slot_key(self.form.sample)] = noisy
        batch[slot_key(self.form.timestep)] = times if self.scale == 1 else times * self.scale
        for slot, values in self.conditions.items():
            chosen = values[rows]
            if self.null:
                without = self.null[slot]
                other = without[rows] if len(without) > 1 else without.expand_as(chosen)
                chosen = torch.where(dropped.view(-1, *[1] * (chosen.ndim - 1)), other, chosen)
            batch[slot_key(slot)] = chosen
        return batch


@dataclass(frozen=True, kw_only=True)
class GuidanceHalves:
    """The two halves of a guided call's rows: with the condition, and without.

    Attributes:
        conditional: which half is with it, 0 or 1.
        null_share: share of a batch that is drawn without.
    """

    conditional: int
    null_share: float

    @classmethod
    def of(cls, scale: float, conditional: int) -> GuidanceHalves:
        """The halves under guidance of a scale s.

        The guided output is s c + (1 - s) u of the outputs c with and u without the condition, so
        their squared errors are weighted s^2 : (1 - s)^2 (docs/algorithms.md#calibration).
        """
        null = (1 - scale) ** 2
        return cls(conditional=conditional, null_share=null / (scale**2 + null))


@dataclass(frozen=True, kw_only=True)
class RecordedCalls(BatchSource):
    """Recorded calls of the uncompressed denoiser, with its outputs as targets.

    Attributes:
        form: template of the calls.
        calls: all alike in rows but the last ones.
        halves: the two halves of each call's rows; None: all rows are of one kind.
    """

    form: CallTemplate
    calls: list[Call]
    halves: GuidanceHalves | None = None

    def draw(self, random: np.random.Generator, count: int) -> dict[str, Tensor]:
        """A batch of random rows of random calls."""
        numbers = random.integers(len(self.calls), size=count).tolist()
        return gather_batch(
            self.calls, [(n, self._row(len(self.calls[n].output), random)) for n in numbers]
        )

    def _row(self, rows: int, random: np.random.Generator) -> int:
        if self.halves is None:
            return int(random.integers(rows))
        null = bool(random.random() < self.halves.null_share)
        half = 1 - self.halves.conditional if null else self.halves.conditional
        return half * (rows // 2) + int(random.integers(rows // 2))
