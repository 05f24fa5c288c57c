"""Plan and Override: who decides what, and exact sizes."""

from __future__ import annotations

import pytest
import torch

from dpq_core.errors import SpecError
from dpq_core.planning.plan import make_plan
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.spec import KMeansSpec, Override, QuantSpec
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_core.tensor.partition import Layout


class Shapes(Checkpoint):
    """A checkpoint of shapes only: planning reads no tensor."""

    def __init__(self, **shapes):
        self.source = "shapes"
        self.side_files = {}
        self.fingerprint = "f"
        self.tensors = {
            name.replace("__", "."): TensorInfo(shape, torch.bfloat16)
            for name, shape in shapes.items()
        }
        self.tensors["step"] = TensorInfo((4, 4), torch.int64)

    def read(self, name):
        raise AssertionError("planning must not read tensors")


class Matrices(TensorAdapter):
    """Compresses every matrix, the table at 8 bits."""

    name = "matrices"
    summary = "for tests"

    def open(self, source):
        return Shapes(a__weight=(64, 32), b__weight=(128, 64), b__bias=(128,), table=(300, 16))

    def select(self, name, shape):
        return Layout.LINEAR if len(shape) == 2 else None

    def overrides(self, spec, checkpoint):
        return (Override("table", {"d": 1, "scope": "tensor"}),)


def plan_of(*texts, bits=2):
    adapter = Matrices()
    overrides = [Override.parse(text) for text in texts]
    plan = make_plan(adapter.open("x"), adapter, QuantSpec.preset(bits), overrides)
    return {t.name: t for t in plan}, plan


def test_the_adapter_selects_and_adjusts():
    tensors, _ = plan_of()
    assert tensors["a.weight"].spec == QuantSpec.preset(2, kmeans=KMeansSpec(init="random"))
    dense = KMeansSpec(init="kmeans++", noise_power=0.0)
    assert tensors["table"].spec == QuantSpec.preset(2, d=1, scope="tensor", kmeans=dense)
    assert tensors["b.bias"].spec is None
    assert tensors["step"].spec is None  # integers are never quantized


def test_user_overrides_come_last():
    tensors, _ = plan_of("b.*=keep", "table=4", "a.weight=d=8,K=16,row_scale=false")
    assert tensors["b.weight"].spec is None
    assert tensors["table"].spec.d == 2
    assert tensors["a.weight"].spec.K == 16
    assert tensors["a.weight"].spec.row_scale is False


def test_a_kept_tensor_can_be_taken_back():
    tensors, _ = plan_of("*=keep", "a.*=3")
    assert tensors["a.weight"].spec.d == 3
    assert tensors["b.weight"].spec is None


def test_sizes_are_those_of_the_parts():
    tensors, plan = plan_of()
    columns = 64 * 6 // 8  # their permutation
    assert tensors["b.weight"].nbytes == 16 * 128 + 256 * 4 * 2 + 128 * 2 + columns
    assert tensors["b.bias"].nbytes == 256
    assert plan.nbytes == sum(t.nbytes for t in plan)
    assert plan.bits_per_weight == 8 * plan.nbytes / sum(t.info.numel for t in plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.weight", "write PATTERN"),
        ("=4", "write PATTERN"),
        ("a.weight=7", "bits must be"),
        ("a.weight=dd=3", "unknown key dd"),
        ("a.weight=d=99", "d must be"),
        ("nothing.*=4", "matches no compressible tensor"),
        ("a.weight=scope=99", r"tensor 'a.weight' \[64, 32\]: scope asks for 99"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(text, message):
    with pytest.raises(SpecError, match=message):
        plan_of(text)
