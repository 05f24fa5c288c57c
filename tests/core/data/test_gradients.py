"""Sensitivities by gradients, against noise that is really added."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpq_core.data.gradients import collect_gradients
from dpq_core.data.sensitivity import sensitivities
from dpq_core.data.task import CalibrationTask

CLASSES = 12


class Classifier(CalibrationTask):
    """Random inputs of very different sizes; the loss is the KL to the classifier as it came."""

    name = "kl"

    def __init__(self):
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, CLASSES))
        self.student[2].weight.data *= 3
        self.student.requires_grad_(False)
        with torch.no_grad():
            self.answers = [self.student(batch["x"]).log_softmax(-1) for batch in self.validation()]

    def train_batch(self, step):
        raise AssertionError("planning trains nothing")

    def validation(self):
        generator = torch.Generator().manual_seed(1)
        return [
            {"x": torch.randn(512, 16, generator=generator), "number": torch.full((512,), n)}
            for n in range(2)
        ]

    def forward(self, model, batch):
        return model(batch["x"])

    def loss(self, batch):
        answer = self.answers[int(batch["number"][0])]
        found = self.student(batch["x"]).log_softmax(-1)
        return nn.functional.kl_div(found, answer, reduction="batchmean", log_target=True)

    def sampled_loss(self, batch, generator):
        logits = self.student(batch["x"].clone().requires_grad_())
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def reference_loss(self):
        return 0.0


class Blind(Classifier):
    def sampled_loss(self, batch, generator):
        return None


NAMES = ("0.weight", "2.weight")


@pytest.mark.slow
def test_one_backward_pass_tells_what_noise_tells():
    by_gradient = sensitivities(Classifier(), NAMES)
    by_noise = sensitivities(Blind(), NAMES, relative=0.002)
    assert by_gradient.keys() == by_noise.keys() == set(NAMES)
    for name in NAMES:
        assert by_gradient[name] == pytest.approx(by_noise[name], rel=0.35)


@pytest.mark.slow
def test_the_model_is_left_as_it_was():
    task = Classifier()
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    first, second = sensitivities(task, NAMES), sensitivities(task, NAMES)
    assert first == second
    assert all(torch.equal(before[n], value) for n, value in task.student.state_dict().items())
    assert all(p.grad is None for p in task.student.parameters())
    assert not any(m._forward_hooks for m in task.student.modules())


def test_layers_that_do_not_run_are_left_out():
    task = Classifier()
    task.student.add_module("unused", nn.Identity())
    task.student.unused.inside = nn.Linear(3, 3)
    found = collect_gradients(task, ["0", "unused.inside"], task.validation(), quick=False)
    assert found.keys() == {"0"}
    assert found["0"].seen == found["0"].reached == 1024
    expected = sum(batch["x"].double().square().sum(0) for batch in task.validation())
    torch.testing.assert_close(found["0"].inputs, expected, rtol=1e-5, atol=0)
