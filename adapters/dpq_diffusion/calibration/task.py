"""The calibration task of a denoiser, a transformer or UNet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpq_core.data.task import Batch, CalibrationTask
from dpq_diffusion.calibration.inputs import BatchSource, NoisedData
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
class CalibrationSamples:
    """The batches that calibration looks at.

    Attributes:
        train: for training.
        validation: makes those for validation, of which training sees nothing; not every task
            asks for them, and drawing them takes as long as drawing others.
        what: description of the samples for people.
        fingerprint: a text that changes when the samples do.
    """

    train: BatchSource
    validation: Callable[[], BatchSource]
    what: str
    fingerprint: str


class DenoiserTask(CalibrationTask):
    """Calibration of a compressed denoiser against the uncompressed one, on noisy samples."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        samples: CalibrationSamples,
        options: CalibrateOptions,
        *,
        prefix: str = "",
        seed: int = 0,
    ) -> None:
        """Make the task of a student.

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
        self._validation: list[Batch] = []
        self.data = samples.what
        self.name = f"{_NAMES[options.loss]} on {samples.what}"
        about = f"{samples.fingerprint} {options!r} {seed}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()
        _make_deterministic(student)

    def train_batch(self, step: int) -> Batch:
        """A random batch of noisy samples with their conditions; the same for the same step."""
        return self._draw(self._samples.train, step)

    def validation(self) -> Sequence[Batch]:
        """The validation batches, with the uncompressed model's outputs where these are needed."""
        if not self._validation:
            steps = range(_VALIDATION, _VALIDATION + self._options.validation_batches)
            inputs = self._samples.validation()
            self._validation = [self._with_target(self._draw(inputs, step)) for step in steps]
        return self._validation

    def loss(self, batch: Batch) -> Tensor:
        """The student's loss on a batch."""
        return self._loss(self.student, batch)

    @torch.no_grad()
    def reference_loss(self) -> float:
        """The loss of the uncompressed model; its distance to itself is 0."""
        if self._options.loss == "distill":
            return 0.0
        model = self._teacher or self.student
        losses = [float(self._loss(model, batch)) for batch in self.validation()]
        return sum(losses) / len(losses)

    def teacher(self) -> nn.Module | None:
        """The uncompressed denoiser."""
        return self._teacher

    def blocks(self) -> Sequence[str]:
        """The paths of a transformer's blocks, in order; a UNet, which is no chain, gives none."""
        lists = ((name, getattr(self.student, name, None)) for name in _BLOCKS)
        return [
            f"{name}.{i}"
            for name, blocks in lists
            if isinstance(blocks, nn.ModuleList)
            for i in range(len(blocks))
        ]

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The output ``[n, ...]`` of a whole denoiser for a batch."""
        return self._samples.train.form.call(model, batch)

    def tensor_name(self, path: str) -> str:
        """The artifact's name of a module's weight: the component's name comes first."""
        return f"{self._prefix}{path}.weight"

    def _draw(self, inputs: BatchSource, step: int) -> dict[str, Tensor]:
        return inputs.draw(np.random.default_rng([self._seed, step]), self._options.batch_size)

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        output = self.forward(model, batch).float()
        if self._options.loss == "distill":
            target = self._with_target(batch)["target"]
            return functional.mse_loss(output, target.to(output.device))
        inputs = self._samples.train
        assert isinstance(inputs, NoisedData)  # see __init__
        tensors = {k: v.to(output.device) for k, v in batch.items() if isinstance(v, Tensor)}
        return inputs.process.loss(output, tensors)

    def _with_target(self, batch: Batch) -> Mapping[str, Any]:
        """The batch with the uncompressed model's output as ``target``, where the loss needs it."""
        if "target" in batch or self._options.loss != "distill":
            return batch
        with torch.no_grad():
            target = self.forward(self._teacher or self.student, batch).float()
        return {**batch, "target": target.cpu()}


def _make_deterministic(model: nn.Module) -> None:
    """Switch off what a model drops at random in training mode: batches drop classes already."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "LabelEmbedding":  # diffusers' DiT; drops at random
            vars(module)["dropout_prob"] = 0.0
