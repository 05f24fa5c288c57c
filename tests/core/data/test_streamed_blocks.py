"""Blocks whose weights are read as they run: the same results, two blocks in memory at most."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_blocks import Stack, Task, UNet
from toy_sequential import make, targets_of
from toy_streamed import Streamed, assert_equal, quantize

from dpq_core.data.gradients import collect_gradients
from dpq_core.data.sensitivity import sensitivities
from dpq_core.data.streamed_blocks import StreamedBlocks
from dpq_core.errors import AdapterError


@pytest.mark.parametrize(
    "options", [{}, {"store_inputs": False}, {"true_sequential": False}, {"memory": 0}], ids=str
)
@pytest.mark.parametrize("kind", [Stack, UNet])
def test_streamed_blocks_are_quantized_as_blocks_in_memory(tmp_path, kind, options):
    whole, _, _ = quantize(tmp_path / "a", kind, streamed=False, **options)
    parts, _, stream = quantize(tmp_path / "b", kind, streamed=True, **options)
    assert_equal(parts, whole)
    assert stream.most <= 2
    assert stream.in_memory() <= 1


def test_each_block_is_read_to_trace_it_and_to_quantize_it(tmp_path):
    _, _, stream = quantize(tmp_path, Stack, streamed=True)
    # And once more where the head is tried on the outputs of the last block, which is held.
    assert stream.reads == [*Stack.blocks_of, *Stack.blocks_of, *Stack.blocks_of[:-1]]


def test_finished_blocks_keep_their_quantized_weights(tmp_path):
    parts, task, stream = quantize(tmp_path, Stack, streamed=True)
    with torch.no_grad(), stream.blocks.hold_all():
        task.forward(task.student, task.train_batch(0))
        weights = task.student.state_dict()
        assert_equal({name: weights[name] for name in parts}, parts)
    assert stream.in_memory() == 0


def test_weights_go_when_another_block_runs_unless_they_are_held():
    stream = Streamed(make(Stack))
    batch = Task(stream.model).train_batch(0)
    with stream.blocks.hold("blocks.0"):
        assert stream.in_memory() == 0  # not before they are needed
        stream.model(batch)
        assert not stream.blocks.is_absent("blocks.0")
        assert stream.in_memory() == 2
    assert stream.in_memory() == 1
    stream.model(batch)
    assert stream.reads == [*Stack.blocks_of, *Stack.blocks_of]
    assert not stream.blocks.is_absent("elsewhere")


class Labels(Task):
    """Has a loss on labels that it draws, or none."""

    draws = True

    def forward(self, model, batch):
        x = model.embed(batch["index"]).detach().requires_grad_()
        for block in model.blocks:
            x = block(x, mask=None)
        return model.head(x)

    def sampled_loss(self, batch, generator):
        if not self.draws:
            return None
        logits = self.forward(self.student, batch).log_softmax(-1).flatten(0, -2)
        labels = torch.multinomial(logits.detach().exp(), 1, generator=generator)
        return -logits.gather(1, labels).sum()

    def validation(self):
        return [self.train_batch(step) for step in range(2)]

    def loss(self, batch):
        return self.forward(self.student, batch).square().mean()


class Noise(Labels):
    draws = False


def test_a_backward_pass_keeps_no_blocks_weights():
    paths = [path for path, module in make(Stack).named_modules() if isinstance(module, nn.Linear)]
    found = []
    for streamed in (False, True):
        model = make(Stack)
        stream, task = Streamed(model) if streamed else None, Labels(model)
        task.streamed = stream.blocks if stream else None
        model.requires_grad_(False)
        found.append(collect_gradients(task, paths, task.validation(), quick=False))
    assert found[0].keys() == found[1].keys() == set(paths)
    for path in paths:
        a, b = found[0][path], found[1][path]
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.outputs, b.outputs)
        assert a.sensitivity() == b.sensitivity() > 0
        assert (a.seen, a.reached) == (b.seen, b.reached)
    assert stream.most == 1


@pytest.mark.parametrize("kind", [Labels, Noise])
def test_sensitivities_are_those_of_the_whole_model(kind):
    found = []
    for streamed in (False, True):
        model = make(Stack).requires_grad_(False)
        stream, task = Streamed(model) if streamed else None, kind(model)
        task.streamed = stream.blocks if stream else None
        found.append(sensitivities(task, [t.name for t in targets_of(model)]))
    assert found[0] == found[1]
    assert len(found[0]) >= 22
    assert stream.in_memory() <= 1


def test_a_mistake_in_reading_is_not_hidden():
    def refuse(path):
        raise AdapterError(path)

    model = make(Stack)
    weight = nn.Parameter(model.blocks[1].q.weight.to("meta"), False)
    blocks = StreamedBlocks(model, {"blocks.1": {"blocks.1.q.weight": weight}}, refuse)
    with pytest.raises(AdapterError, match=r"blocks\.1"):
        model(Task(model).train_batch(0))
    assert blocks.is_absent("blocks.1")
