"""Runs of a block that wait at layers while these are quantized, and go on with the new weights."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from toy_blocks import WIDTH, Block, Stack
from toy_sequential import BATCHES, assert_same, run, run_watched, sources

from dpq_core.data.sequential.activations import Activations
from dpq_core.data.sequential.paused_runs import PausedRuns
from dpq_core.data.sequential.segments import Source
from dpq_core.data.statistics.hooks import Diverged
from dpq_core.errors import AdapterError

STEPS = range(4)
GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


def arguments(step):
    draw = torch.Generator().manual_seed(step)
    return (torch.randn(2, 5, WIDTH, generator=draw),), {}


def block_and_runs(block=None, groups=GROUPS, budget=10**9):
    torch.manual_seed(0)
    block = Block() if block is None else block
    layers = [[block.get_submodule(path) for path in paths] for paths in groups]
    return block, PausedRuns(block, layers, arguments, STEPS, budget=budget)


def halved(block, paths):
    """Halve weights: a stand-in for quantization."""
    for path in paths:
        block.get_submodule(path).weight.data *= 0.5


def input_of(block, path, step):
    """The definition: what a layer gets when the block runs as it is now."""
    values = []
    handle = block.get_submodule(path).register_forward_pre_hook(lambda _, x: values.append(x[0]))
    args, kwargs = arguments(step)
    block(*args, **kwargs)
    handle.remove()
    return values[0]


@pytest.mark.parametrize(("budget", "suspended"), [(0, 0), (2000, 2), (10**9, 4)])
@torch.no_grad()
def test_layers_get_what_the_block_as_it_is_now_gives_them(budget, suspended):
    block, runs = block_and_runs(budget=budget)
    for number, paths in enumerate(GROUPS):
        wanted = [input_of(block, paths[0], step) for step in STEPS]
        found = [value for _, value in runs.inputs(number)]
        assert len(found) == len(STEPS)
        assert all(map(torch.equal, found, wanted))
        halved(block, paths)
    assert sum(run.waits is not None for run in runs._runs.values()) == suspended
    outputs = dict(runs.outputs())
    assert list(outputs) == list(STEPS)
    for step, output in outputs.items():
        args, kwargs = arguments(step)
        assert torch.equal(output, block(*args, **kwargs))
    runs.close()


@torch.no_grad()
def test_within_the_budget_each_batch_goes_through_the_block_once():
    block, runs = block_and_runs()
    calls = []
    for path in ("q", "o", "down", "norm2"):
        block.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    for number in range(len(GROUPS)):
        list(runs.inputs(number))
    list(runs.outputs())
    assert sorted(calls) == sorted(["q", "o", "down", "norm2"] * len(STEPS))
    runs.close()


@torch.no_grad()
def test_closing_frees_what_waits_and_removes_the_hooks():
    block, runs = block_and_runs()
    kept = [weakref.ref(value) for _, value in runs.inputs(1)]
    assert all(reference() is not None for reference in kept)
    runs.close()
    gc.collect()
    assert all(reference() is None for reference in kept)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in block.modules())


@torch.no_grad()
def test_an_error_in_the_block_reaches_the_caller():
    class Fails(Block):
        def forward(self, x):
            self.o(self.q(x))
            raise FloatingPointError("of the block")

    _, runs = block_and_runs(Fails(), (("q",), ("o",)))
    assert len(list(runs.inputs(0))) == len(STEPS)
    assert len(list(runs.inputs(1))) == len(STEPS)
    with pytest.raises(FloatingPointError, match="of the block"):
        list(runs.outputs())
    runs.close()


class Moody(nn.Module):
    """A block whose layers get other inputs than they should, or in another order."""

    def __init__(self, mood):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mood = mood

    def forward(self, x):
        if self.mood == "another input":
            return self.a(x) + self.b(x.clone())
        if self.mood == "another order":
            return self.a(self.b(x))
        if self.mood == "changed in place":
            y = self.a(x)
            return y + self.b(x.add_(1))
        return self.a(x) + self.a(x) + self.b(x)  # "twice"


@pytest.mark.parametrize("mood", ["another input", "another order", "changed in place", "twice"])
@pytest.mark.parametrize("budget", [0, 10**9])
@torch.no_grad()
def test_layers_that_do_not_get_what_they_should_are_told_apart(mood, budget):
    groups = (("a", "b"),) if mood != "another order" else (("a",), ("b",))
    _, runs = block_and_runs(Moody(mood), groups, budget)

    def through():
        for number in range(len(groups)):
            list(runs.inputs(number))
        list(runs.outputs())

    with pytest.raises(Diverged):
        through()
    runs.close()


@torch.no_grad()
def test_a_batch_that_misses_a_group_goes_on_to_the_next():
    class Misses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.b(x if torch.equal(x, arguments(1)[0][0]) else self.a(x))

    for budget in (0, 10**9):
        _, runs = block_and_runs(Misses(), (("a",), ("b",)), budget)
        assert [len(list(runs.inputs(number))) for number in (0, 1)] == [3, 4]
        assert len(list(runs.outputs())) == 4
        runs.close()


# -- in sequential quantization -------------------------------------------------------------------


def test_with_and_without_room_for_waiting_runs_the_results_are_the_same(tmp_path, monkeypatch):
    made = []
    for name in ("room", "none"):
        (tmp_path / name).mkdir()
        if name == "none":
            monkeypatch.setattr(Activations, "room", 0)
        made.append(run(tmp_path / name)[0])
    assert_same(*made)


class Switching(Stack):
    """Layers that share an input in the first batch do not share it in the second."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x, first):
            return x + self.c(self.a(x) * self.b(x if first else torch.tanh(x)))

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in self.blocks_of)

    def forward(self, batch):
        x = self.embed(batch["index"])
        first = bool((batch["index"][0, 0] == first_token()).item())
        for block in self.blocks:
            x = block(x, first)
        return self.head(x)


def first_token():
    draw = torch.Generator().manual_seed(0)
    return torch.randint(12, (2, 5), generator=draw)[0, 0]


def test_a_block_whose_batches_differ_starts_over_with_its_original_weights(tmp_path):
    """Every statistic is held against its definition on the model at that moment."""
    work, quantizer = run_watched(tmp_path, Switching, unchecked=("b.weight",))
    assert sources(work)["blocks.1"] is Source.CHAIN
    assert [report.passes for report in work.reports][1:4] == [2, 2, 2]
    assert len(quantizer.statistics) == 1 + 9 + 1
    assert BATCHES == 3


class LateSwitching(Switching):
    """The same, but the layer is called after the last one at which runs wait."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x, first):
            return self.a(x) * self.b(x if first else torch.tanh(x))

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in self.blocks_of)


def test_a_block_whose_batches_differ_too_late_to_start_over_is_refused(tmp_path):
    with pytest.raises(AdapterError, match=r"blocks\.0: layers that share an input on the first"):
        run(tmp_path, LateSwitching)
