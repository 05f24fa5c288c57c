"""DenoiserTask: a transformer or UNet for the calibration loop."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpq_core.data.task import Batch, CalibrationTask
from dpq_diffusion.calibration.inputs import Clean, Inputs
from dpq_diffusion.options import CalibrateOptions

_NAMES = {
    "distill": "distance to the uncompressed model",
    "ddpm": "DDPM loss",
    "flow": "flow-matching loss",
}

_BLOCKS = ("transformer_blocks", "single_transformer_blocks")
"""Lists of blocks in diffusers' transformers; in UNets they are further down, and no chain."""

_VALIDATION = 1 << 40
"""Where the steps of validation batches begin, beyond those of any training."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Where batches come from.

    Attributes:
        train: for training.
        validation: for validation, of which training sees nothing.
        what: they are, for people.
        fingerprint: changes when they do.
    """

    train: Inputs
    validation: Inputs
    what: str
    fingerprint: str


class DenoiserTask(CalibrationTask):
    """A compressed denoiser, the uncompressed one, and noisy samples."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        samples: Samples,
        options: CalibrateOptions,
        *,
        prefix: str = "",
        seed: int = 0,
    ) -> None:
        """Take over the parts.

        Args:
            student: ready to be trained (``prepare_student``), or an uncompressed model.
            teacher: the uncompressed model; None where the student is uncompressed itself.
            samples: for the loss of the options: data, or for ``distill`` recorded calls.
            options: of the user.
            prefix: of the artifact's names, ``transformer/`` or so.
            seed: of all draws.
        """
        self.student = student
        self._teacher, self._samples, self._options = teacher, samples, options
        self._prefix, self._seed = prefix, seed
        self._fixed: list[Batch] = []
        self.name = f"{_NAMES[options.loss]} on {samples.what}"
        about = f"{samples.fingerprint} {options!r} {seed}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()
        _make_deterministic(student)

    def train_batch(self, step: int) -> Batch:
        """Noisy samples, with their conditions, noise and levels."""
        return self._draw(self._samples.train, step)

    def validation(self) -> Sequence[Batch]:
        """Noisy samples, with the answers of the uncompressed model where the loss needs them."""
        if not self._fixed:
            steps = range(_VALIDATION, _VALIDATION + self._options.validation_batches)
            self._fixed = [self._answered(self._draw(self._samples.validation, s)) for s in steps]
        return self._fixed

    def loss(self, batch: Batch) -> Tensor:
        """Of the student."""
        return self._loss(self.student, batch)

    @torch.no_grad()
    def reference_loss(self) -> float:
        """Loss of the uncompressed model; its distance to itself is 0."""
        if self._options.loss == "distill":
            return 0.0
        model = self._teacher or self.student
        found = [float(self._loss(model, batch)) for batch in self.validation()]
        return sum(found) / len(found)

    def teacher(self) -> nn.Module | None:
        """The uncompressed denoiser."""
        return self._teacher

    def blocks(self) -> Sequence[str]:
        """The blocks of a transformer; a UNet has no chain of them."""
        lists = ((name, getattr(self.student, name, None)) for name in _BLOCKS)
        return [
            f"{name}.{i}"
            for name, found in lists
            if isinstance(found, nn.ModuleList)
            for i in range(len(found))
        ]

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The whole denoiser's output ``[n, ...]``."""
        return self._samples.train.form.call(model, batch)

    def tensor_name(self, path: str) -> str:
        """The tensors of a pipeline's component bear its name."""
        return f"{self._prefix}{path}.weight"

    def _draw(self, inputs: Inputs, step: int) -> dict[str, Tensor]:
        return inputs.draw(np.random.default_rng([self._seed, step]), self._options.batch)

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        output = self.forward(model, batch).float()
        if self._options.loss == "distill":
            target = self._answered(batch)["target"]
            return functional.mse_loss(output, target.to(output.device))
        inputs = self._samples.train
        assert isinstance(inputs, Clean)  # see __init__
        known = {k: v.to(output.device) for k, v in batch.items() if isinstance(v, Tensor)}
        return inputs.process.loss(output, known)

    def _answered(self, batch: Batch) -> Mapping[str, Any]:
        """With the uncompressed model's output, unless it is there or is not needed."""
        if "target" in batch or self._options.loss != "distill":
            return batch
        with torch.no_grad():
            target = self.forward(self._teacher or self.student, batch).float()
        return {**batch, "target": target.cpu()}


def _make_deterministic(model: nn.Module) -> None:
    """Classes are dropped by the batches: in training mode the model must not drop more."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "LabelEmbedding":  # diffusers' DiT; drops at random
            vars(module)["dropout_prob"] = 0.0
