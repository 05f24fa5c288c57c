"""Sequential quantization: inputs from the quantized prefix, one block at a time."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn
from toy_blocks import WIDTH, Stack, Task, UNet
from toy_sequential import (
    BATCHES,
    Rounded,
    Rounding,
    assert_same,
    make,
    run,
    run_watched,
    seen_by_layer,
    targets_of,
)

from dpq_core.data.sequential.block_store import BlockStore
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.data.sequential.loop import Sequential
from dpq_core.data.sequential.targets import TargetWeight
from dpq_core.errors import AdapterError


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Stack, UNet])
@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("store_inputs", [True, False])
def test_statistics_are_those_of_the_model_at_that_moment(
    tmp_path, kind, true_sequential, store_inputs
):
    work, quantizer = run_watched(
        tmp_path, kind, true_sequential=true_sequential, store_inputs=store_inputs
    )
    assert len(quantizer.statistics) == len(targets_of(work._model))


def test_inputs_of_the_uncompressed_model_would_be_noticed(tmp_path):
    _, _, quantizer = run(tmp_path)
    teacher = Task(make(Stack))
    found = quantizer.statistics
    for path in ("blocks.0.q", "blocks.1.down", "blocks.2.q", "head"):
        wanted = seen_by_layer(teacher, path)
        lost = (found[f"{path}.weight"] - wanted).norm() / wanted.norm()
        assert float(lost) > 0.01, path


@pytest.mark.slow
def test_within_a_block_layers_see_the_quantized_ones_before_them_or_not(tmp_path):
    found = {}
    for name, option in (("yes", True), ("no", False)):
        (tmp_path / name).mkdir()
        found[name] = run(tmp_path / name, true_sequential=option)[2].statistics
    same = {name for name in found["yes"] if torch.equal(found["yes"][name], found["no"][name])}
    # "embed" and the first inputs of the first block are made by the same layers in both.
    assert same == {"embed.weight", *(f"blocks.0.{x}.weight" for x in "qkv")}


def test_layers_are_quantized_in_the_order_in_which_they_run(tmp_path):
    work, _, quantizer = run(tmp_path)
    inside = ("q", "k", "v", "o", "gate", "up", "down")
    wanted = ["embed", *(f"blocks.{i}.{x}" for i in range(3) for x in inside), "head"]
    assert [name.removesuffix(".weight") for name in quantizer.statistics] == wanted
    assert [report.name for report in work.reports] == [
        "before blocks.0",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "after all blocks",
    ]
    # Every batch goes through a block once, and waits where layers are quantized.
    assert [report.passes for report in work.reports] == [1, 1, 1, 1, 1]


def test_stored_parts_and_weights_in_the_model_agree(tmp_path):
    work, _, _ = run(tmp_path)
    for name, error in work._store.errors.items():
        assert error == 0.5
        parts = work._store.read(name).parts
        assert torch.equal(parts["codes"], work._model.state_dict()[name])


class Tied(Stack):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, 12, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_weight_is_quantized_once_and_stays_tied(tmp_path):
    model = make(Tied)
    targets = [t for t in targets_of(model) if t.name != "head.weight"]
    work, _, quantizer = run(tmp_path, model=model, targets=targets)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, work._store.read("embed.weight").parts["codes"])
    assert "head.weight" not in quantizer.statistics


def test_layers_that_never_run_or_have_another_shape_are_left_out(tmp_path):
    model = make(Stack)
    model.spare = nn.Linear(3, 3)
    targets = [
        *targets_of(model),
        TargetWeight(name="spare.weight", shape=(3, 3)),
        TargetWeight(name="blocks.0.norm1.weight", shape=(WIDTH,)),
        TargetWeight(name="unknown", shape=(2, 2)),
    ]
    targets = [
        t if t.name != "head.weight" else TargetWeight(name=t.name, shape=(1, 1)) for t in targets
    ]
    work, _, _ = run(tmp_path, model=model, targets=targets)
    assert len(work._store.errors) == 1 + 21
    assert {"spare.weight", "head.weight", "unknown"}.isdisjoint(work._store.errors)


def test_a_tensor_that_the_quantizer_leaves_out_stays_as_it_is(tmp_path):
    class Picky(Rounding):
        def quantize(self, name, weight, statistics):
            if name == "blocks.1.o.weight":
                return None
            return super().quantize(name, weight, statistics)

    work, _, _ = run(tmp_path, quantizer=Picky())
    assert "blocks.1.o.weight" not in work._store.errors
    assert torch.equal(work._model.blocks[1].o.weight, make(Stack).blocks[1].o.weight)


@pytest.mark.slow
def test_conv_columns_follow_the_order_of_the_target(tmp_path):
    found = []
    for layout in ("spatial", "channel"):
        (tmp_path / layout).mkdir()
        model = make(UNet)
        targets = targets_of(model, first=layout)
        found.append(run(tmp_path / layout, model=model, targets=targets)[2].statistics)
    spatial, channel = (statistics["first.weight"] for statistics in found)
    order = torch.arange(27).view(3, 3, 3).movedim(0, -1).reshape(-1)
    torch.testing.assert_close(channel, spatial[order][:, order])


def test_the_model_is_left_as_it_was_found(tmp_path):
    model = make(Stack).train()
    run(tmp_path, model=model)
    assert model.training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_blocks_within_blocks_are_refused(tmp_path):
    class Inside(Stack):
        blocks_of = ("blocks", "blocks.0")

    with pytest.raises(AdapterError, match=r"'blocks\.0' lies within 'blocks'"):
        run(tmp_path, model=make(Inside))


# -- memory ---------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Blocks of odd sizes, so that activations and matrices are told from weights by shape."""

    blocks_of = tuple(f"blocks.{i}" for i in range(6))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(23, 29), nn.Linear(23, 29)
            self.down = nn.Linear(29, 23)

        def forward(self, x):
            return x + self.down(torch.relu(self.gate(x)) * self.up(x))

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 23)
        self.blocks = nn.ModuleList(self.Block() for _ in self.blocks_of)

    def forward(self, batch):
        x = self.first(batch["t"])
        for block in self.blocks:
            x = block(x)
        return x


class Forgetful(Rounding):
    """Keeps no statistics."""

    def quantize(self, name, weight, statistics):
        self.watch(name, weight, statistics)
        return Rounded(weight.round(decimals=1)), 0.5


def live(*shapes):
    """How many tensors of these shapes there are, views of one storage counted once."""
    alive = [x for x in gc.get_objects() if type(x) is torch.Tensor and tuple(x.shape) in shapes]
    return len({x.untyped_storage().data_ptr() for x in alive})


@pytest.mark.slow
@pytest.mark.parametrize("true_sequential", [True, False])
def test_one_blocks_activations_and_one_matrix_live_at_a_time(tmp_path, true_sequential):
    matrices, activations = [], []

    def watch(*_):
        gc.collect()
        matrices.append(live((23, 23), (29, 29), (5, 5)))
        activations.append(live((2, 23)))

    memory = 10**9 if true_sequential else 4 * BATCHES * 2 * 23  # of all batches, or one matrix
    gc.collect()
    gc.freeze()  # what is there already is not searched again and again
    run(
        tmp_path,
        Wide,
        quantizer=Forgetful(watch),
        true_sequential=true_sequential,
        memory=memory,
    )
    # In turn, the moment of the inputs and how far they have drifted; the inputs of the block in
    # the uncompressed model too.
    streams = 2 if true_sequential else 1
    assert matrices == [1] + [streams] * 18
    assert activations == [(streams - 1) * BATCHES] + [streams * BATCHES] * 17 + [BATCHES]
    assert live((2, 23), (23, 23)) == 0
    gc.unfreeze()


def test_within_the_budget_matrices_of_a_block_are_collected_together(tmp_path):
    passes = {}
    for memory in (1, 10**9, 4 * 8 * WIDTH * WIDTH):
        folder = tmp_path / str(memory)
        folder.mkdir()
        work, _, _ = run(folder, true_sequential=False, memory=memory)
        passes[memory] = (work.reports[1].passes, work)
    # Four distinct inputs: three of 8 columns and one of 16, which takes as much as four of them.
    assert [count for count, _ in passes.values()] == [4, 1, 2]
    assert_same(passes[1][1], passes[10**9][1])


@pytest.mark.parametrize("memory", [0, 700, 10**9])
@pytest.mark.parametrize("kind", [Stack, UNet])
def test_activations_beyond_the_budget_are_on_disk_with_the_same_result(tmp_path, memory, kind):
    on_disk, in_memory = [], []

    def watch(*_):
        on_disk.append(len(list(scratch.glob("*.safetensors"))))
        in_memory.append(work[0]._runner._activations.nbytes if work else 0)

    work = []
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    scratch = tmp_path / "a" / "out.blocks" / "scratch"
    model = make(kind)
    store = BlockStore(tmp_path / "a" / "out", "f", resume=False, overwrite=False)
    options = SequentialOptions(batches=BATCHES, memory=memory, quick=False)
    work.append(Sequential(Task(model), targets_of(model), Rounding(watch), store, options=options))
    work[0].run()
    assert max(in_memory) <= memory
    assert max(on_disk) == {0: BATCHES, 10**9: 0}.get(memory, max(on_disk))
    if memory == 700 and kind is Stack:  # a batch of 2 x 5 tokens: 320 bytes, and a mask of 40
        assert max(on_disk) == BATCHES - 1
    assert not scratch.exists()
    assert_same(work[0], run(tmp_path / "b", kind)[0])


def test_progress_ends_with_all_weights(tmp_path):
    lines = []
    model = make(Stack)
    store = BlockStore(tmp_path / "out", "f", resume=False, overwrite=False)
    Sequential(
        Task(model),
        targets_of(model),
        Rounding(),
        store,
        options=SequentialOptions(batches=1, quick=False),
        progress=lambda *line: lines.append(line),
    ).run()
    weights = sum(math.prod(t.shape) for t in targets_of(model))
    assert {total for _, _, total in lines} == {weights}
    done = [count for _, count, _ in lines]
    assert done == sorted(done)
    assert "blocks.1: statistics" in [what for what, _, _ in lines]
