"""A small regression to calibrate: a residual MLP that learns from its dense twin."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dpq_core.data.task import CalibrationTask
from dpq_core.methods.quantize import quantize
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.swap import set_module
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_core.tensor.partition import Layout, Partition

SPEC = QuantSpec(d=4, K=32, scope="subspace", kmeans=KMeansSpec(iterations=8))
DIM = 32


class Block(nn.Module):
    def __init__(self, width: int = DIM) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def make_teacher(blocks: int = 2, seed: int = 0, width: int = DIM) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*[Block(width) for _ in range(blocks)]).eval()


def quantized(teacher: nn.Module, spec: QuantSpec = SPEC) -> nn.Module:
    """A copy with its Linear weights quantized; other parameters are trained too."""
    student = copy.deepcopy(teacher)
    for path, module in list(student.named_modules()):
        if isinstance(module, nn.Linear):
            p = Partition.of(tuple(module.weight.shape), Layout.LINEAR, spec)
            pq = quantize(module.weight.detach(), p, spec, f"{path}.weight").pq
            set_module(student, path, PQLinear(PQWeight.from_pq(pq), module.bias))
    return student


class Memory(Checkpoint):
    """A checkpoint of a module's state dict."""

    def __init__(self, module: nn.Module) -> None:
        self._values = {name: v.detach().clone() for name, v in module.state_dict().items()}
        self.source = "memory"
        self.tensors = {n: TensorInfo(tuple(v.shape), v.dtype) for n, v in self._values.items()}
        self.side_files = {}
        self.fingerprint = "memory"

    def read(self, name: str) -> Tensor:
        return self._values[name]


class Regression(CalibrationTask):
    """Mean squared distance to the teacher's outputs, over their power, on correlated inputs."""

    name = "distance"

    def __init__(
        self,
        blocks: int = 2,
        spec: QuantSpec = SPEC,
        samples: int = 64,
        width: int = DIM,
        *,
        blockwise: bool = True,
    ) -> None:
        self._teacher = make_teacher(blocks, width=width)
        self.student = quantized(self._teacher, spec)
        self._samples, self._blockwise = samples, blockwise
        spread = torch.linspace(2, 0.1, width)
        mix = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width**0.5
        self._mix = mix * spread[:, None]

    def _batch(self, seed: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self._samples, len(self._mix), generator=generator) @ self._mix
        with torch.no_grad():
            return {"x": x, "y": self._teacher(x)}

    def train_batch(self, step: int) -> Mapping[str, Tensor]:
        return self._batch(1000 + step)

    def validation(self) -> Sequence[Mapping[str, Tensor]]:
        return [self._batch(seed) for seed in range(4)]

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.student(batch["x"]), batch["y"])

    def reference_loss(self) -> float:
        return 0.0

    def teacher(self) -> nn.Module:
        return self._teacher

    def blocks(self) -> Sequence[str]:
        return [str(i) for i in range(len(self._teacher))] if self._blockwise else []

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["x"])


SMALL_SPEC = SPEC.replace(K=16)


class SmallRegression(Regression):
    """A quarter of the weights and half of the codewords: whole runs take a third of the time."""

    def __init__(
        self, blocks: int = 2, spec: QuantSpec = SMALL_SPEC, *, blockwise: bool = True
    ) -> None:
        super().__init__(blocks, spec, width=DIM // 2, blockwise=blockwise)
