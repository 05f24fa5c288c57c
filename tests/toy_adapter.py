"""A whole adapter: two-layer perceptrons kept in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from dpq_core.artifact import Artifact
from dpq_core.errors import SourceError, SpecError
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.plugin.results import Evaluation, Export, Metric, Sampling
from dpq_core.run import Run
from dpq_core.tensor.checkpoint import Checkpoint, SafetensorsCheckpoint
from dpq_core.tensor.partition import Layout


@dataclass(frozen=True)
class EvaluateOptions:
    rows: int = field(default=256, metadata={"help": "random inputs to measure on"})

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise SpecError("must be at least 1", option="rows", value=self.rows)


@dataclass(frozen=True)
class SampleOptions:
    count: int = field(default=3, metadata={"help": "outputs to show"})


class MLPAdapter(TensorAdapter):
    name = "mlp"
    summary = "two-layer perceptrons (w1, b1, w2) in a .safetensors file"
    options: ClassVar[Mapping[str, type]] = {"evaluate": EvaluateOptions, "sample": SampleOptions}
    exports = ("safetensors",)

    # These two are enough for `dpq compress` and `dpq inspect`.

    def open(self, source: str) -> Checkpoint:
        path = Path(source)
        if path.suffix != ".safetensors" or not path.is_file():
            raise SourceError(f"{source}: not a .safetensors file; give the path of one")
        return SafetensorsCheckpoint(source, [path])

    def select(self, name: str, shape: tuple[int, ...]) -> Layout | None:
        return Layout.LINEAR if name in ("w1", "w2") else None

    # Each of these adds a verb.

    def load(self, source: str, run: Run) -> dict[str, Tensor]:
        if Artifact.is_artifact(source):
            return _dense(Artifact.open(source))
        checkpoint = self.open(source)
        return {name: checkpoint.read(name).float() for name in checkpoint.tensors}

    def evaluate(self, source: str, options: EvaluateOptions, run: Run) -> Evaluation:
        outputs = _forward(self.load(source, run), options.rows, run.seed)
        power = Metric(
            name="power",
            value=float(outputs.square().mean()),
            higher_is_better=True,
            protocol=f"mean square of the outputs for {options.rows} normal inputs",
        )
        return Evaluation(metrics=(power,))

    def sample(self, source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
        outputs = _forward(self.load(source, run), options.count, run.seed)
        rows = (" ".join(f"{value:.3f}" for value in row) for row in outputs.tolist())
        return Sampling(texts=tuple(rows))

    def export(self, source: str, to: str, options: None, run: Run, out: Path) -> Export:
        partial = out.with_name(out.name + ".partial")
        save_file(self.load(source, run), partial)
        partial.replace(out)  # whole or not at all
        return Export(files=(out,))

    def probe(self, artifact: Artifact, run: Run) -> dict[str, Tensor]:
        return {"outputs": _forward(_dense(artifact), 8, seed=0)}


def _dense(artifact: Artifact) -> dict[str, Tensor]:
    return {name: artifact.read(name).float() for name in artifact.names()}


def _forward(model: dict[str, Tensor], rows: int, seed: int) -> Tensor:
    """Outputs ``[rows, classes]`` for normal inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, model["w1"].shape[1], generator=generator)
    return torch.relu(inputs @ model["w1"].T + model["b1"]) @ model["w2"].T
