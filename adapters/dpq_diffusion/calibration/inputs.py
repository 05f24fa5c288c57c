"""Where batches come from: clean data that is noised, or calls that were recorded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpq_diffusion.calibration.calls import Call, Form, gather, key
from dpq_diffusion.calibration.processes import Process


class Inputs(ABC):
    """Samples for one denoiser.

    Attributes:
        form: how it is called.
    """

    form: Form

    @abstractmethod
    def draw(self, random: np.random.Generator, count: int) -> dict[str, Tensor]:
        """A batch: the call's tensors (``calls.key``) and what the loss needs, ``[count, ...]``.

        It is random through ``random`` alone.
        """


@dataclass(frozen=True, kw_only=True)
class Clean(Inputs):
    """Data to be noised.

    Attributes:
        form: how the denoiser is called.
        process: that adds noise.
        data: float32 ``[N, ...]``.
        conditions: slot -> ``[N, ...]``.
        null: slot -> ``[N, ...]`` or ``[1, ...]``, in place of the conditions where they are left
            out; empty: never.
        dropout: share of samples for which that is.
        scale: the denoiser takes the scheduler's timesteps times this.
    """

    form: Form
    process: Process
    data: Tensor
    conditions: Mapping[int, Tensor]
    null: Mapping[int, Tensor]
    dropout: float = 0.0
    scale: float = 1.0

    def draw(self, random: np.random.Generator, count: int) -> dict[str, Tensor]:
        """Data, noise, levels and dropped classes."""
        generator = torch.Generator().manual_seed(int(random.integers(1 << 62)))
        rows = torch.randint(len(self.data), (count,), generator=generator)
        clean = self.data[rows]
        noise = torch.randn(clean.shape, generator=generator)
        levels = self.process.levels(count, generator)
        dropped = torch.rand(count, generator=generator) < self.dropout
        noisy = self.process.noised(clean, noise, levels)
        times = self.process.timesteps(levels)
        batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
        batch[key(self.form.sample)] = noisy
        batch[key(self.form.timestep)] = times if self.scale == 1 else times * self.scale
        for slot, values in self.conditions.items():
            chosen = values[rows]
            if self.null:
                without = self.null[slot]
                other = without[rows] if len(without) > 1 else without.expand_as(chosen)
                chosen = torch.where(dropped.view(-1, *[1] * (chosen.ndim - 1)), other, chosen)
            batch[key(slot)] = chosen
        return batch


@dataclass(frozen=True, kw_only=True)
class Halves:
    """A guided call: one half of its rows is with the condition, the other half without.

    Attributes:
        conditional: which half is with it, 0 or 1.
        null_share: share of a batch that is drawn without.
    """

    conditional: int
    null_share: float

    @classmethod
    def of(cls, scale: float, conditional: int) -> Halves:
        """For guidance c -> s c + (1 - s) u, whose squared error is weighted s^2 : (1 - s)^2."""
        null = (1 - scale) ** 2
        return cls(conditional=conditional, null_share=null / (scale**2 + null))


@dataclass(frozen=True, kw_only=True)
class Recorded(Inputs):
    """Calls of the uncompressed denoiser, with its answers.

    Attributes:
        form: of the calls.
        calls: all alike in rows but the last ones.
        halves: of their rows; None: they are all of one kind.
    """

    form: Form
    calls: list[Call]
    halves: Halves | None = None

    def draw(self, random: np.random.Generator, count: int) -> dict[str, Tensor]:
        """Rows of calls."""
        numbers = random.integers(len(self.calls), size=count).tolist()
        return gather(
            self.calls, [(n, self._row(len(self.calls[n].output), random)) for n in numbers]
        )

    def _row(self, rows: int, random: np.random.Generator) -> int:
        if self.halves is None:
            return int(random.integers(rows))
        null = bool(random.random() < self.halves.null_share)
        half = 1 - self.halves.conditional if null else self.halves.conditional
        return half * (rows // 2) + int(random.integers(rows // 2))
