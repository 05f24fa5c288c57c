"""Hidden axes: which ones are free, and that another order of their units is the same model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, silu

from dpq_core.methods.quantize import quantize
from dpq_core.planning.free_axes import free_axes
from dpq_core.planning.plan import plan_tensor
from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_core.tensor.hidden_axes import (
    HiddenAxis,
    Orders,
    Producer,
    ReorderedCheckpoint,
    reorder_rows,
)
from dpq_core.tensor.partition import Layout, Partition


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


class Held(Checkpoint):
    """Tensors in memory."""

    def __init__(self, **tensors: Tensor) -> None:
        self.source, self.side_files, self.fingerprint = "held", {}, "f"
        self.tensors = {n: TensorInfo(tuple(t.shape), t.dtype) for n, t in tensors.items()}
        self._values = tensors

    def read(self, name: str) -> Tensor:
        return self._values[name]


def _axis(consumer: str, *producers: str, blocks: int = 1) -> HiddenAxis:
    return HiddenAxis(
        consumer=consumer, producers=tuple(Producer(name, blocks) for name in producers)
    )


def _reordered(axis: HiddenAxis, perm: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
    checkpoint = ReorderedCheckpoint(Held(**tensors), Orders([axis], lambda _: perm))
    return {name: checkpoint.read(name) for name in tensors}


def test_hidden_units_of_an_mlp_may_be_reordered() -> None:
    old = {"w1": _random(24, 8), "b1": _random(24, seed=1), "w2": _random(6, 24, seed=2)}
    x, perm = _random(5, 8, seed=3), _shuffled(24, 4)
    new = _reordered(_axis("w2", "w1", "b1"), perm, **old)

    def run(t: dict[str, Tensor]) -> Tensor:
        return gelu(x @ t["w1"].T + t["b1"]) @ t["w2"].T

    torch.testing.assert_close(run(new), run(old), rtol=0, atol=1e-12)
    assert torch.equal(new["w2"], old["w2"][:, perm])
    assert torch.equal(new["b1"], old["b1"][perm])


def test_hidden_units_of_a_gated_mlp_may_be_reordered() -> None:
    old = {"up": _random(24, 8), "gate": _random(24, 8, seed=1), "down": _random(6, 24, seed=2)}
    x = _random(5, 8, seed=3)
    new = _reordered(_axis("down", "up", "gate"), _shuffled(24, 4), **old)

    def run(t: dict[str, Tensor]) -> Tensor:
        return (silu(x @ t["gate"].T) * (x @ t["up"].T)) @ t["down"].T

    torch.testing.assert_close(run(new), run(old))
    assert not torch.equal(new["up"], old["up"])


def test_values_and_gates_may_come_from_one_weight() -> None:
    old = {"both": _random(48, 8), "bias": _random(48, seed=1), "down": _random(6, 24, seed=2)}
    x = _random(5, 8, seed=3)
    new = _reordered(_axis("down", "both", "bias", blocks=2), _shuffled(24, 4), **old)

    def run(t: dict[str, Tensor]) -> Tensor:
        value, gate = (x @ t["both"].T + t["bias"]).chunk(2, dim=1)
        return (value * gelu(gate)) @ t["down"].T

    torch.testing.assert_close(run(new), run(old))
    assert not torch.equal(new["both"], old["both"])


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_reordered_checkpoint_is_the_original_in_another_order(data: st.DataObject) -> None:
    units, blocks = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    perm = torch.tensor(data.draw(st.permutations(range(units))))
    rows = data.draw(st.sampled_from([(), (4,), (3, 2, 2)]))
    old = {
        "in": _random(blocks * units, *rows),
        "out": _random(5, units, seed=1),
        "other": _random(units, units, seed=2),
    }
    asked: list[HiddenAxis] = []
    axis = _axis("out", "in", blocks=blocks)
    orders = Orders([axis], lambda one: asked.append(one) or perm)
    source = Held(**old)
    new = ReorderedCheckpoint(source, orders)
    assert (new.tensors, new.source, new.fingerprint) == (source.tensors, "held", "f")
    assert torch.equal(new.read("other"), old["other"])
    assert asked == []
    for first in range(0, blocks * units, units):
        for i in range(units):
            assert torch.equal(new.read("in")[first + i], old["in"][first + int(perm[i])])
    for i in range(units):
        assert torch.equal(new.read("out")[:, i], old["out"][:, int(perm[i])])
    assert asked == [axis]  # searched once
    assert {n: tuple(new.read(n).shape) for n in old} == {n: tuple(old[n].shape) for n in old}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"K": 23},
        {"K": 1024},
        {"scope": "subspace", "row_scale": False},
        {"codebook_dtype": "int8", "pool": {"method": "wkmeans", "size": 20}},
        {"stages": 2, "K": 16},
        {"group_scale": True, "permute": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.CONV])
def test_rows_of_what_is_stored_change_places_exactly(changes: dict, layout: Layout) -> None:
    shape = (301, 18) if layout is Layout.LINEAR else (301, 2, 3, 3)
    spec = QuantSpec(d=4, K=64).replace(kmeans={"iterations": 1, "tail": 0}, **changes)
    p = Partition.of(shape, layout, spec)
    pq = quantize(_random(*shape).float(), p, spec).pq
    rows = _shuffled(301, 5)
    moved = reorder_rows(p, pq.parts(), rows)
    again = type(pq).from_parts(p, spec, pq.dtype, moved)
    assert torch.equal(again.decode(), pq.decode()[rows])
    assert moved.keys() == pq.parts().keys()


SPEC = QuantSpec(d=4, K=16, permute=True)
SHAPES = {
    "a": (24, 8),
    "a.bias": (24,),
    "b": (12, 24),
    "c": (6, 12),
    "fused": (48, 8),
    "conv": (6, 24, 3, 3),
    "d": (7, 24),
}


def _free(*axes: HiddenAxis, **specs: QuantSpec | None) -> list[str]:
    """Consumers of the free axes, where matrices have ``SPEC`` or that of ``specs``."""
    plans = {}
    for name, shape in SHAPES.items():
        layout = {2: Layout.LINEAR, 4: Layout.CONV}.get(len(shape))
        info = TensorInfo(shape, torch.float32)
        plans[name] = [plan_tensor(name, info, layout, specs.get(name, SPEC))]
    return list(free_axes(axes, plans))


AB, DA = _axis("b", "a", "a.bias"), _axis("d", "a")


@pytest.mark.parametrize(
    ("axes", "specs", "found"),
    [
        pytest.param([AB], {}, ["b"], id="plain"),
        pytest.param([_axis("b", "fused", blocks=2)], {}, ["b"], id="fused"),
        pytest.param([AB], {"a": None}, ["b"], id="producer kept"),
        pytest.param([AB], {"a": SPEC.replace(permute=False)}, ["b"], id="producer in order"),
        pytest.param([AB, _axis("c", "fused")], {}, ["b"], id="another does not fit"),
        pytest.param([_axis("b", "fused")], {}, [], id="two blocks not told"),
        pytest.param([_axis("b", "a", blocks=2)], {}, [], id="one block only"),
        pytest.param([_axis("b", "a", "nothing")], {}, [], id="producer missing"),
        pytest.param([_axis("nothing", "a")], {}, [], id="consumer missing"),
        pytest.param([_axis("b")], {}, [], id="no producer"),
        pytest.param([_axis("b", "a", "a")], {}, [], id="producer twice"),
        pytest.param([_axis("b", "b")], {}, [], id="its own producer"),
        pytest.param([_axis("b", "c")], {}, [], id="other shape"),
        pytest.param([AB], {"b": None}, [], id="consumer kept"),
        pytest.param([AB], {"b": SPEC.replace(permute=False)}, [], id="not permuted"),
        pytest.param([AB], {"a": SPEC.replace(orientation="output")}, [], id="producer across"),
        pytest.param([AB], {"a": SPEC.replace(transform="rht")}, [], id="producer rotated"),
        pytest.param([_axis("conv", "a")], {}, [], id="columns are not channels"),
        pytest.param([AB, DA], {}, [], id="two read the units"),
        pytest.param([AB, _axis("b", "fused", blocks=2)], {}, [], id="two write the units"),
        pytest.param([AB, _axis("c", "b")], {}, ["b"], id="chain"),
    ],
)
def test_only_axes_that_fit_are_free(axes: list[HiddenAxis], specs: dict, found: list[str]) -> None:
    assert _free(*axes, **specs) == found


def test_every_plan_of_a_producer_must_allow_it() -> None:
    infos = {name: TensorInfo(SHAPES[name], torch.float32) for name in ("a", "b")}
    wide = [plan_tensor("b", infos["b"], Layout.LINEAR, SPEC.replace(d=d)) for d in (2, 4)]
    fixed = plan_tensor("b", infos["b"], Layout.LINEAR, SPEC.replace(permute=False))
    good = plan_tensor("a", infos["a"], Layout.LINEAR, SPEC)
    bad = plan_tensor("a", infos["a"], Layout.LINEAR, SPEC.replace(transform="rht"))
    axis = _axis("b", "a")
    assert list(free_axes([axis], {"a": [good], "b": [*wide, fixed]})) == ["b"]
    assert list(free_axes([axis], {"a": [good, bad], "b": wide})) == []
    freed = wide[1].with_reordered_axis(axis)
    assert freed.standalone_spec == wide[1].spec
    assert freed.spec == wide[1].spec.replace(permute=False)
    assert freed.nbytes == wide[1].nbytes - 24 * 5 // 8
    assert fixed.with_reordered_axis(axis) is fixed
    assert wide[0].with_reordered_axis(None) is wide[0]
