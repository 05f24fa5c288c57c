"""The toy adapter with calibration: the student's names differ from the artifact's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from toy_adapter import EvaluateOptions, MLPAdapter

from dpq_core.artifact import Artifact
from dpq_core.calibrate.layers import prepare_student
from dpq_core.data.task import CalibrationTask
from dpq_core.run import Run
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.weight import PQWeight


@dataclass(frozen=True)
class CalibrateOptions:
    batch_size: int = field(default=32, metadata={"help": "samples per step"})


class Perceptron(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Task(CalibrationTask):
    name = "distance"
    data = "random inputs"

    def __init__(self, student: nn.Module, teacher: nn.Module, batch_size: int, seed: int) -> None:
        self.student, self._teacher, self._batch, self._seed = student, teacher, batch_size, seed

    def _draw(self, seed: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self._batch, 64, generator=generator)
        with torch.no_grad():
            return {"x": x, "y": self._teacher(x)}

    def train_batch(self, step: int) -> Mapping[str, Tensor]:
        return self._draw(10_000 * (1 + self._seed) + step)

    def loss(self, batch_size: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.student(batch_size["x"]), batch_size["y"])

    def validation(self) -> Sequence[Mapping[str, Tensor]]:
        return [self._draw(seed) for seed in range(4)]

    def reference_loss(self) -> float:
        return 0.0

    def tensor_name(self, path: str) -> str:
        return {"first": "w1", "second": "w2"}[path]

    def parameter_name(self, name: str) -> str:
        return {"first.bias": "b1"}[name] if name == "first.bias" else name


class CalibratedMLP(MLPAdapter):
    options: ClassVar[Mapping[str, type]] = {
        "evaluate": EvaluateOptions,
        "calibrate": CalibrateOptions,
    }

    def calibration(
        self, source: str, reference: str, options: CalibrateOptions | None, run: Run
    ) -> Task:
        artifact, original = Artifact.open(source), self.open(reference)
        first, second = (PQWeight.from_pq(artifact.read_pq(name)) for name in ("w1", "w2"))
        student = Perceptron(PQLinear(first, artifact.read("b1")), PQLinear(second))
        teacher = Perceptron(nn.Linear(64, len(original.read("b1"))), nn.Linear(1, 1, bias=False))
        teacher.requires_grad_(False)
        teacher.first.weight = nn.Parameter(original.read("w1"), False)
        teacher.first.bias = nn.Parameter(original.read("b1"), False)
        teacher.second.weight = nn.Parameter(original.read("w2"), False)
        batch_size = (options or CalibrateOptions()).batch_size
        return Task(prepare_student(student), teacher.eval(), batch_size, run.seed)
