"""sensitivities(): the loss says which weights matter, and the model stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpq_core.data.sensitivity import sensitivities
from dpq_core.data.task import CalibrationTask


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


class Watched(CalibrationTask):
    """A loss per batch that is given, and a note of the weights while it is measured."""

    name = "watched"

    def __init__(self, *losses: float) -> None:
        self.student = nn.Sequential(
            nn.Linear(4096, 6, bias=False), nn.Conv2d(300, 5, (3, 4)), nn.LayerNorm(7)
        )
        with torch.no_grad():  # rows of different size
            self.student[0].weight.mul_(torch.tensor([0.0, 1, 10, 100, 1e-3, 5])[:, None])
            self.student[1].weight.mul_(torch.tensor([3.0, 1, 10, 0.1, 1])[:, None, None, None])
        self.weights = {n: p.detach().clone() for n, p in self.student.named_parameters()}
        self.losses = losses or (1.0,)
        self.noise: list[dict[str, torch.Tensor]] = []
        self.modes: set[bool] = set()

    def train_batch(self, step):
        raise AssertionError("planning trains nothing")

    def loss(self, batch):
        assert not torch.is_grad_enabled()
        self.modes |= {module.training for module in self.student.modules()}
        params = self.student.named_parameters()
        wrong = {n: p.detach() - self.weights[n] for n, p in params}
        self.noise.append({n: x for n, x in wrong.items() if x.count_nonzero()})
        return torch.tensor(self.losses[batch["i"]]) * (1 + len(self.noise[-1]))

    def validation(self):
        return [{"i": i} for i in range(len(self.losses))]

    def reference_loss(self):
        return 0.0


@pytest.mark.parametrize("relative", [None, 0.25])
def test_every_row_gets_the_same_share_of_its_energy_as_noise(relative):
    task = Watched()
    options = {} if relative is None else {"relative": relative}
    sensitivities(task, task.weights, **options)
    before, linear, conv = task.noise[0], task.noise[1], task.noise[2]
    assert before == {}  # and then one weight at a time, a weight with few axes apart
    for found, name in ((linear, "0.weight"), (conv, "1.weight")):
        assert set(found) == {name}
        noise, weight = found[name].flatten(1), task.weights[name].flatten(1)
        share = noise.square().sum(1) / weight.square().sum(1).clamp(min=1e-30)
        wanted = torch.full((len(weight),), 0.05 if relative is None else relative)
        wanted[weight.eq(0).all(1)] = 0
        torch.testing.assert_close(share, wanted, rtol=0.15, atol=0)


def test_a_sensitivity_is_the_rise_of_the_mean_loss_over_the_error():
    task = Watched(2.0, 4.0, 100.0)
    found = sensitivities(task, ["0.weight", "1.weight"])  # two batches: 3 before, 6 with noise
    assert found == {"0.weight": pytest.approx(3 / 0.05), "1.weight": pytest.approx(3 / 0.05)}
    found = sensitivities(task, ["0.weight"], batches=1, relative=0.5)
    assert found == {"0.weight": pytest.approx(2 / 0.5)}
    found = sensitivities(task, ["0.weight"], batches=9)
    assert found == {"0.weight": pytest.approx(106 / 3 / 0.05)}


def test_a_loss_that_noise_lowers_leaves_a_weight_a_little_worth():
    task = Watched(-1.0)  # twice as low with noise
    assert sensitivities(task, ["0.weight"]) == {"0.weight": pytest.approx(1e-36 / 0.05)}


@pytest.mark.parametrize("training", [True, False])
def test_losses_are_measured_in_eval_mode_whatever_the_mode_was(training):
    task = Watched()
    task.student.train(training)
    sensitivities(task, task.weights)
    assert task.modes == {False}
    assert task.student.training is training


def test_progress_names_every_weight():
    seen = []
    sensitivities(
        Watched(), ["1.weight", "0.weight", "none"], progress=lambda *now: seen.append(now)
    )
    assert seen == [("0.weight", 0, 2), ("1.weight", 1, 2), ("done", 2, 2)]


def test_nothing_wanted_is_nothing_found():
    assert sensitivities(Watched(), []) == {}


def test_a_weight_is_put_back_where_the_loss_fails():
    task = Watched()
    task.losses = (1.0,)
    good = task.loss
    task.loss = lambda batch: good(batch) if not task.noise else 1 / 0
    with pytest.raises(ZeroDivisionError):
        sensitivities(task, task.weights)
    assert all(torch.equal(p, task.weights[n]) for n, p in task.student.named_parameters())
