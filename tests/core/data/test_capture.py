"""trace() and its kin: what one batch shows of blocks, and how a part of a model is run alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpq_core.data.sequential.activations import Unstorable
from dpq_core.data.sequential.capture import arguments_of, next_arguments, trace, until


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, h, scale=None):
        h = self.y(torch.tanh(self.x(h)))
        return h if scale is None else h * scale


class Model(nn.Module):
    """Layers before, between and after two blocks; ``between`` says how the blocks are wired."""

    def __init__(self, between=lambda model, h, first: h) -> None:
        super().__init__()
        self.first, self.mid, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.a, self.b, self.between = Block(), Block(), between

    def forward(self, h):
        h = self.first(h)
        return self.last(self.b(self.between(self, self.a(h), h)))


def traced(model, layers=("first", "a.x", "a.y", "mid", "b.x", "b.y", "last"), blocks="ab"):
    return trace(model.eval(), layers, blocks, lambda: model(torch.ones(2, 4)))


def wirings(found):
    return [block.wiring for block in found.blocks]


def test_calls_are_placed_in_blocks_and_between_them():
    found = traced(Model(lambda model, h, first: model.mid(h)))
    assert [(call.path, call.segment) for call in found.calls] == [
        ("first", 0), ("a.x", 1), ("a.y", 1), ("mid", 2), ("b.x", 3), ("b.y", 3), ("last", 4)
    ]  # fmt: skip
    assert len({call.serial for call in found.calls}) == 7
    assert [block.path for block in found.blocks] == ["a", "b"]
    assert not found.repeated


def test_a_block_may_be_a_layer_itself():
    found = traced(Model(), layers=["first", "a.x"], blocks=["first", "a"])
    assert [(call.path, call.segment) for call in found.calls] == [("first", 1), ("a.x", 3)]


def test_a_layer_beside_a_block_whose_name_begins_alike_is_outside():
    model = Model(lambda model, h, first: h)
    model.a.x, model.ab = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)
    model.a.x[0].register_forward_hook(lambda module, args, out: model.ab(out))
    found = traced(model, layers=["a.x.0", "ab"])
    assert ("ab", 0) in [(call.path, call.segment) for call in found.calls]


def test_equal_inputs_of_layers_are_one_only_if_they_are_the_same_tensor():
    model = nn.ModuleDict({"q": nn.Linear(4, 4), "k": nn.Linear(4, 4)})
    x = torch.ones(2, 4)

    def serials(*inputs):
        run = lambda: [model[name](v) for name, v in zip("qk", inputs, strict=True)]  # noqa: E731
        return [call.serial for call in trace(model, "qk", [], run).calls]

    same = serials(x, x)
    assert same[0] == same[1]
    other = serials(x, x.clone())
    assert other[0] != other[1]
    by_name = trace(model, "q", [], lambda: model["q"](input=x)).calls
    assert [call.path for call in by_name] == ["q"]


def test_no_gradients_are_kept_and_no_hooks_are_left():
    model, seen = Model(), []
    model.last.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    traced(model)
    assert seen == [False]
    with pytest.raises(ZeroDivisionError):
        trace(model, ["first"], ["a"], lambda: 1 / 0)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 1


@pytest.mark.parametrize(
    ("between", "wiring"),
    [
        (lambda model, h, first: h, (0,)),
        (lambda model, h, first: first, (None,)),  # as the block before was given
        (lambda model, h, first: first.clone(), (None,)),  # equal values will do
        (lambda model, h, first: model.mid(h), None),
        (lambda model, h, first: h + 0, None),
        (lambda model, h, first: first.double().float() + 1, None),
    ],
)
def test_the_wiring_says_where_a_blocks_arguments_come_from(between, wiring):
    assert wirings(traced(Model(between))) == [None, wiring]


def test_arguments_of_another_structure_are_not_wired():
    class Scaled(Model):
        def forward(self, h):
            return self.b(self.a(self.first(h)), scale=2.0)

    assert wirings(traced(Scaled(), layers=[])) == [None, None]


def test_several_arguments_are_wired_one_by_one():
    class Pair(nn.Module):
        def forward(self, x, y, z):
            return y * 1, x + z

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Pair(), Pair()

        def forward(self, h):
            same = torch.full((4,), 3.0)
            one, two = self.a(h, h * 2, same)
            return self.b(two, one, same.clone())

    assert wirings(traced(Pairs(), layers=[])) == [None, (1, 0, None)]


def test_a_block_replays_if_it_gives_the_same_again():
    assert [block.replays for block in traced(Model()).blocks] == [True, True]

    class Counting(Block):
        calls = 0

        def forward(self, h):
            self.calls += 1
            return super().forward(h) + self.calls

    class InPlace(Block):
        def forward(self, h):
            return super().forward(h.mul_(1.0))

    class Listing(Block):
        def forward(self, h):
            return {"h": super().forward(h), "cache": object()}

    for kind in (Counting, InPlace):
        model = Model()
        model.a = kind()
        assert [block.replays for block in traced(model).blocks] == [False, True]
    model = Model(lambda model, h, first: h["h"])
    model.a = Listing()
    found = traced(model)
    assert [block.replays for block in found.blocks] == [False, True]
    assert wirings(found) == [None, None]  # of what followed, nothing was kept
    model = Model()
    model.a.forward, inner = lambda h, cache: inner(h), model.a.forward
    model.between = lambda model, h, first: h
    model.forward = lambda h: model.b(model.a(h, object()))
    assert [block.replays for block in traced(model, layers=[]).blocks] == [False, True]


def test_watching_runs_a_block_twice_and_notes_it_once():
    model, runs = Model(), []
    model.a.x.register_forward_hook(lambda *_: runs.append(0))
    found = traced(model)
    assert len(runs) == 2
    assert [call.path for call in found.calls].count("a.x") == 1
    assert not found.repeated


def test_a_block_that_runs_again_is_noted():
    found = traced(Model(lambda model, h, first: model.a(h)))
    assert found.repeated
    assert [block.path for block in found.blocks] == ["a", "a", "b"]


# -- running a part -------------------------------------------------------------------------------

OLD, NEW = (torch.full((2,), float(i)) for i in (1, 2))


def test_the_next_arguments_are_the_output_where_they_are_wired():
    args, kwargs = next_arguments(((OLD, 3), {"mask": NEW}), (NEW + 5, [OLD + 7]), (1, None))
    assert torch.equal(args[0], OLD + 7)
    assert args[1] == 3
    assert kwargs["mask"] is NEW


@pytest.mark.parametrize(
    ("arguments", "output", "wiring"),
    [
        (((OLD,), {}), NEW, (0, None)),
        (((OLD, NEW), {}), NEW, (0,)),
        (((OLD,), {}), (NEW,), (1,)),
        (((OLD,), {}), (), (None,)),
        (((OLD,), {}), (NEW, object()), (0,)),
        (((OLD, object()), {}), NEW, (0,)),
    ],
)
def test_a_batch_that_is_wired_otherwise_cannot_be_chained(arguments, output, wiring):
    with pytest.raises(Unstorable):
        next_arguments(arguments, output, wiring)


def ran(**where):
    """Which of three modules ran before the pass was ended."""
    model, seen = nn.Sequential(*(nn.Linear(1, 1) for _ in range(3))), []
    for name, module in model.named_children():
        module.register_forward_pre_hook(lambda module, args, name=name: seen.append(name))
    with until(**{key: model[index] for key, index in where.items()}):
        model(torch.ones(1, 1))
        seen.append("end")
    assert model(torch.ones(1, 1)).shape == (1, 1)  # nothing stops any more
    return seen[:-3]


def test_a_pass_ends_where_a_module_begins_or_ends():
    assert ran() == ["0", "1", "2", "end"]
    assert ran(before=1) == ["0"]
    assert ran(after=1) == ["0", "1"]
    assert ran(before=2, after=0) == ["0"]
    assert ran(before=1, after=2) == ["0"]


def test_errors_pass_through_and_hooks_go():
    module = nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), until(before=module, after=module):
        raise ZeroDivisionError
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_the_arguments_are_those_of_the_first_call():
    model, seen = Model(), []
    model.b.register_forward_pre_hook(lambda *_: seen.append(0))
    x = torch.ones(2, 4)
    args, kwargs = arguments_of(model.a, lambda: (model.a(x, scale=2.0), model.b(x)))
    assert args[0] is x
    assert kwargs == {"scale": 2.0}
    assert seen == []  # the pass ends there
    assert not model.a._forward_pre_hooks
    with pytest.raises(Unstorable, match="does not reach the block"):
        arguments_of(model.a, lambda: model.b(x))
