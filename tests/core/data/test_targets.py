"""Which layers hold the weights to be quantized, and what lies within a block."""

from __future__ import annotations

import pytest
from torch import nn
from toy_blocks import Task

from dpq_core.data.sequential.targets import TargetWeight, blocks_of, layers_of, within
from dpq_core.errors import AdapterError


class Model(nn.Module):
    """A table that is the head's weight too, a layer under two names, others."""

    blocks_of = ("block",)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        self.again = self.block[0]
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight


class Named(Task):
    """Its tensors have other names than its modules; the tied ones have one."""

    def tensor_name(self, path: str) -> str:
        return {"head": "tied", "table": "tied"}.get(path, f"{path}.weight")


def found(task, *targets):
    return layers_of(task, [TargetWeight(name=name, shape=shape) for name, shape in targets])


def test_layers_come_in_the_order_of_the_modules():
    layers = found(Task(Model()), ("block.2.weight", (2, 4)), ("block.0.weight", (4, 4)),
                   ("table.weight", (6, 4)))  # fmt: skip
    assert list(layers) == ["table", "block.0", "block.2"]
    assert layers["block.2"] == TargetWeight(name="block.2.weight", shape=(2, 4))


def test_a_tied_weight_is_the_layers_that_multiplies_with_it():
    assert list(found(Named(Model()), ("tied", (6, 4)))) == ["head"]


def test_a_layer_under_two_names_is_one():
    layers = found(Task(Model()), ("block.0.weight", (4, 4)), ("again.weight", (4, 4)))
    assert list(layers) == ["block.0"]
    assert list(found(Task(Model()), ("again.weight", (4, 4)))) == ["again"]


def test_what_is_no_such_weight_is_left_out():
    task = Task(Model())
    assert found(task, ("block.1.weight", (4,))) == {}  # a LayerNorm
    assert found(task, ("block.0.weight", (4, 5))) == {}
    assert found(task, ("elsewhere.weight", (4, 4))) == {}
    task.student.block[0].weight = None
    assert found(task, ("block.0.weight", (4, 4))) == {}


def test_a_module_lies_within_itself_and_its_parents():
    assert within("a.b", "a")
    assert within("a", "a")
    assert not within("a", "a.b")
    assert not within("ab", "a")


@pytest.mark.parametrize(("blocks", "fine"), [
    (("block.0", "block.2"), True), ((), True), (("block.0", "block"), False),
    (("block", "block.0"), False),
])  # fmt: skip
def test_blocks_must_not_nest(blocks, fine):
    task = Task(Model())
    task.student.blocks_of = blocks
    if fine:
        assert tuple(blocks_of(task)) == blocks
        return
    with pytest.raises(AdapterError, match=r"'block\.0' lies within 'block'"):
        blocks_of(task)
