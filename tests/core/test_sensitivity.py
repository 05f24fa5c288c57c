"""sensitivities(): the loss says which weights matter, and the model stays as it was."""

from __future__ import annotations

import torch
from torch import nn

from dpq_core.calibration import CalibrationTask
from dpq_core.sensitivity import sensitivities


class Sum(nn.Module):
    """Two layers side by side, of which one counts ten times as much."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.quiet, self.unused = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.tied = self.loud

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * self.loud(x) + self.quiet(x)


class Distill(CalibrationTask):
    name = "mean squared error"

    def __init__(self) -> None:
        self.student, self.x = Sum(), torch.randn(256, 16)
        self.target = self.student(self.x).detach()

    def train_batch(self, step):
        raise AssertionError("planning trains nothing")

    def loss(self, batch):
        return (self.student(batch["x"]) - self.target).square().mean()

    def validation(self):
        return [{"x": self.x}]

    def reference_loss(self):
        return 0.0


def test_energy_of_the_output_decides():
    task = Distill()
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    names = ["loud.weight", "quiet.weight", "unused.weight", "elsewhere"]
    found = sensitivities(task, names)
    assert set(found) == {"loud.weight", "quiet.weight", "unused.weight"}
    assert 50 < found["loud.weight"] / found["quiet.weight"] < 200  # ten times, squared
    energy = (10 * task.student.loud(task.x)).square().mean()
    assert 0.7 < found["loud.weight"] / energy < 1.4
    assert 0 < found["unused.weight"] < 1e-5 * found["loud.weight"]
    after = task.student.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_equal_seeds_give_equal_numbers_and_the_mode_is_restored():
    task = Distill()
    task.student.train()
    names = ["loud.weight", "quiet.weight"]
    assert sensitivities(task, names, seed=3) == sensitivities(task, names, seed=3)
    assert sensitivities(task, names, seed=3) != sensitivities(task, names, seed=4)
    assert task.student.training
