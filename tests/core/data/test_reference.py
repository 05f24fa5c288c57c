"""The uncompressed model beside the one that is being quantized, and the drift between the two."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toy_blocks import Stack, Task
from toy_sequential import BATCHES, Rounding, make, targets_of

from dpq_core.data.sequential.activations import Activations
from dpq_core.data.sequential.block_store import BlockStore
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.data.sequential.loop import Sequential
from dpq_core.data.sequential.reference import Drift
from dpq_core.data.statistics.layer_inputs import LayerInput

INSIDE = ("q", "k", "v", "o", "gate", "up", "down")
LAYERS = tuple(f"blocks.{number}.{name}" for number in range(3) for name in INSIDE)


def inputs_of(task, model, path):
    """The inputs of a layer on all batches, as rows."""
    rows = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].flatten(0, -2))
    )
    with torch.no_grad():
        for step in range(BATCHES):
            task.forward(model, task.train_batch(step))
    handle.remove()
    return torch.cat(rows).double()


class Drifting(Rounding):
    """Holds every drift against its definition: both models run, each as it is at that moment."""

    def __init__(self, model):
        super().__init__(self.check)
        self.task, self.original, self.drifts = Task(model), copy.deepcopy(model), {}

    def check(self, name, weight, statistics):
        path = name.removesuffix(".weight")
        self.drifts[path] = statistics.drift
        if statistics.drift is None:
            return
        before = inputs_of(self.task, self.original, path)
        now = inputs_of(self.task, self.task.student, path)
        wanted = (before - now).T @ now / len(now)
        torch.testing.assert_close(statistics.drift.double(), wanted, rtol=1e-3, atol=1e-5)


def drifting(folder, resume=False, quantizer=None, **options):
    model = make(Stack)
    quantizer = quantizer or Drifting(model)
    chosen = SequentialOptions(**{"batches": BATCHES, "quick": False, **options})
    store = BlockStore(folder / "out", "f", resume=resume, overwrite=False)
    work = Sequential(quantizer.task, targets_of(model), quantizer, store, options=chosen)
    return work, quantizer


@pytest.mark.slow
def test_drift_is_measured_between_the_two_models_at_every_layer_of_the_blocks(tmp_path):
    work, quantizer = drifting(tmp_path)
    work.run()
    assert {path for path, drift in quantizer.drifts.items() if drift is not None} == {*LAYERS}
    assert all(float(quantizer.drifts[path].norm()) > 0.01 for path in LAYERS)


@pytest.mark.parametrize("options", [{"correct_drift": False}, {"true_sequential": False}])
def test_drift_is_not_measured_where_it_is_not_wanted(tmp_path, options):
    work, quantizer = drifting(tmp_path, **options)
    work.run()
    assert set(quantizer.drifts.values()) == {None}


@pytest.mark.parametrize("room", [0, 3000])
def test_memory_does_not_decide_what_drift_is_measured(tmp_path, monkeypatch, room):
    """Runs that are given up are repeated, with the original weights of the block."""
    monkeypatch.setattr(Activations, "room", room)
    work, quantizer = drifting(tmp_path)
    work.run()
    assert {path for path, drift in quantizer.drifts.items() if drift is not None} == {*LAYERS}


class Stopping(Drifting):
    """Is stopped at a layer."""

    def check(self, name, weight, statistics):
        if name == "blocks.1.o.weight":
            raise KeyboardInterrupt
        super().check(name, weight, statistics)


@pytest.mark.slow
def test_a_resumed_run_measures_the_same_drift(tmp_path):
    work, _ = drifting(tmp_path, quantizer=Stopping(make(Stack)))
    with pytest.raises(KeyboardInterrupt):
        work.run()
    work, resumed = drifting(tmp_path, resume=True)
    work.run()
    found = {path for path, drift in resumed.drifts.items() if drift is not None}
    assert found == {path for path in LAYERS if not path.startswith("blocks.0.")}


def test_drift_of_a_convolution_is_that_of_its_patches():
    torch.manual_seed(0)
    kind = LayerInput.of(nn.Conv2d(2, 3, 2), "spatial")
    x, y = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    drift = Drift(kind, 10**9, 0)
    drift.add(x[:1], y[:1])
    drift.add(x[1:], y[1:])
    draw = torch.Generator()
    before, now = (torch.cat(list(kind.rows(z, 10**9, draw))).double() for z in (y, x))
    torch.testing.assert_close(drift.mean().double(), (before - now).T @ now / len(now))
