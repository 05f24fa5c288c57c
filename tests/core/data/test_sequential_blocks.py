"""Which blocks run alone on stored inputs, and which have to run within their model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_blocks import WIDTH, Block, Stack, Task, UNet
from toy_sequential import (
    BATCHES,
    assert_same,
    make,
    run,
    run_watched,
    sources,
)

from dpq_core.data.sequential.segments import Source


def test_a_stack_is_chained(tmp_path):
    work, task, _ = run(tmp_path)
    assert sources(work) == {
        "before blocks.0": Source.PREFIX,
        "blocks.0": Source.CAPTURE,
        "blocks.1": Source.CHAIN,
        "blocks.2": Source.CHAIN,
        "after all blocks": Source.PREFIX,
    }
    # The trace, the inputs of the first block in the uncompressed model, then on every batch the
    # embedding, the inputs of the first block and the head; the whole model and its head alone on
    # one batch, to see whether the head needs the rest.
    assert task.forwards == 1 + 4 * BATCHES + 2


def test_skip_connections_break_the_chain(tmp_path):
    work, _, _ = run(tmp_path, UNet)
    found = sources(work)
    assert {name: found[name] for name in UNet.blocks_of} == dict.fromkeys(
        UNet.blocks_of, Source.CAPTURE
    )
    assert list(found) == [
        "before down1",
        "down1",
        "before down2",
        "down2",
        "up2",
        "up1",
        "after all blocks",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Stack, UNet])
@pytest.mark.parametrize("true_sequential", [True, False])
def test_stored_inputs_and_the_running_prefix_give_the_same(tmp_path, kind, true_sequential):
    made = []
    for name, stored in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        work, _, _ = run(
            tmp_path / name, kind, store_inputs=stored, true_sequential=true_sequential
        )
        made.append(work)
    assert set(sources(made[1]).values()) == {Source.PREFIX}
    assert_same(*made)


class Variant(Stack):
    """A stack whose blocks are called in another way."""

    def __init__(self, block=None):
        super().__init__()
        if block is not None:
            self.blocks = nn.ModuleList(block() for _ in self.blocks_of)


class Cached(Variant):
    """Every call leaves something behind in an object that is passed along."""

    class Block(Block):
        def forward(self, x, cache):
            cache.append(1)
            return super().forward(x * len(cache))

    def __init__(self):
        super().__init__(self.Block)

    def forward(self, batch):
        class Cache(list):
            pass

        x, cache = self.embed(batch["index"]), Cache()
        for block in self.blocks:
            x = block(x, cache)
        return self.head(x)


class InPlace(Variant):
    """The input is changed by the block."""

    class Block(Block):
        def forward(self, x, mask):
            return x.add_(super().forward(x, mask))

    def __init__(self):
        super().__init__(self.Block)


class Counting(Variant):
    """The second call of a block gives another output."""

    class Block(Block):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x, mask):
            self.calls += 1
            return super().forward(x, mask) + self.calls % 2

    def __init__(self):
        super().__init__(self.Block)


@pytest.mark.parametrize("kind", [Cached, InPlace, Counting])
def test_a_block_that_cannot_be_replayed_runs_in_its_model(tmp_path, kind):
    work, _, _ = run(tmp_path, kind)
    found = sources(work)
    assert {found[name] for name in kind.blocks_of} == {Source.PREFIX}


class Shifted(Variant):
    """Something happens between the blocks, which their wiring must not miss."""

    def forward(self, batch):
        x = self.embed(batch["index"])
        for block in self.blocks:
            x = block(x)
            x.add_(1)  # the same tensor, another value
        return self.head(x)


class Masked(Variant):
    """Another argument changes from block to block."""

    def forward(self, batch):
        x = self.embed(batch["index"])
        for number, block in enumerate(self.blocks):
            x = block(x, mask=torch.full_like(x, float(number)))
        return self.head(x)


class Nested(Variant):
    """One block gets its input in another place than the others."""

    def forward(self, batch):
        x = self.embed(batch["index"])
        x = self.blocks[0](x)
        x = self.blocks[1](x=x)
        return self.head(self.blocks[2](x, mask=None))


@pytest.mark.parametrize("kind", [Shifted, Masked, Nested])
def test_blocks_are_chained_only_where_their_inputs_follow(tmp_path, kind):
    work, quantizer = run_watched(tmp_path, kind)
    found = sources(work)
    assert [found[name] for name in kind.blocks_of] == [Source.CAPTURE] * 3
    assert len(quantizer.statistics) == 23


class TwoStreams(nn.Module):
    """Blocks with two streams, returned in the other order, and a vector that never changes."""

    blocks_of = ("blocks.0", "blocks.1")

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, *, image, text, extra):
            return {"text": text + self.b(image) * extra["t"], "rest": [image + self.a(text)]}

    def __init__(self):
        super().__init__()
        self.first, self.time = nn.Linear(5, 4), nn.Linear(5, 4)
        self.blocks = nn.ModuleList(self.Block() for _ in self.blocks_of)

    def forward(self, batch):
        image, text = self.first(batch["t"]), self.first(batch["t"] + 1)
        t = self.time(batch["t"])
        for block in self.blocks:
            out = block(image=image, text=text, extra={"t": t, "flag": True})
            text, image = out["text"], out["rest"][0]
        return image + text


def test_several_streams_are_chained_to_where_they_belong(tmp_path):
    work, _ = run_watched(tmp_path, TwoStreams)
    assert sources(work)["blocks.1"] is Source.CHAIN


class Again(Variant):
    """A layer runs a second time, after the layer that follows it and before a third."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x, mask):
            return x + self.c(torch.relu(self.a(torch.tanh(self.b(self.a(x))))))

    def __init__(self):
        super().__init__(self.Block)


@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("memory", [1, 16 * WIDTH * WIDTH, 10**9])
def test_a_pass_ends_after_the_last_call_of_its_layers(tmp_path, true_sequential, memory):
    """Though the next layer, at which it could end otherwise, was called before."""
    _, quantizer = run_watched(tmp_path, Again, true_sequential=true_sequential, memory=memory)
    assert len(quantizer.statistics) == 11


class Looped(Variant):
    """The blocks run twice."""

    def forward(self, batch):
        x = self.embed(batch["index"])
        for block in (*self.blocks, *self.blocks):
            x = block(x)
        return self.head(x)


def test_blocks_that_run_repeatedly_are_seen_every_time(tmp_path):
    # The second round of k already feels q, which is quantized just before it.
    unchecked = ("k.weight", "v.weight", "up.weight")
    work, quantizer = run_watched(tmp_path, Looped, unchecked=unchecked)
    assert set(sources(work).values()) == {Source.PREFIX}
    assert len(quantizer.statistics) == 23
    assert [report.passes for report in work.reports] == [1, 4, 4, 4, 1]


class Experts(Stack):
    """Batch 0 reaches one expert, the others the other; the first block is skipped by batch 1."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x, step):
            return self.c(x + (self.a(x) if step == 0 else self.b(x)))

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in self.blocks_of)

    def forward(self, batch):
        x, step = self.embed(batch["index"]), int(batch["step"])
        for number, block in enumerate(self.blocks):
            if (step, number) != (1, 0):
                x = block(x, step)
        return self.head(x)


class StepTask(Task):
    def train_batch(self, step):
        return {**super().train_batch(step), "step": step}


@pytest.mark.parametrize("store_inputs", [True, False])
def test_layers_that_only_later_batches_reach_are_quantized_too(tmp_path, store_inputs):
    work, quantizer = run_watched(tmp_path, Experts, StepTask, store_inputs=store_inputs)
    assert len(quantizer.statistics) == 1 + 9 + 1
    assert list(quantizer.statistics)[3] == "blocks.0.b.weight"  # after the block's other layers
    assert not store_inputs or sources(work)["blocks.2"] is Source.CHAIN


def test_passes_end_as_soon_as_their_layers_have_run(tmp_path):
    model, calls = make(Stack), []
    model.blocks[0].down.register_forward_hook(lambda *_: calls.append(1))
    run(tmp_path, model=model)
    # The trace and its replay, the block in the uncompressed model and as it is quantized, and one
    # look at the whole model. The head's pass begins behind the blocks.
    assert len(calls) == 2 + 2 * BATCHES + 1
