"""The M-step: gradients of the decoded weight, learning rates, moments."""

from __future__ import annotations

import pytest
import torch
from builders import random_pq
from calibration_task import SPEC, Regression
from torch import nn

from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.layers import prepare_student, quantized_layers, restore, snapshot
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.calibrate.steps import TYPICAL_RMS, MStep, adamw_options, rates
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import PoolSpec
from dpq_core.tensor.packing import unpack


def one_layer(**changes) -> PQLinear:
    pq = random_pq((24, 16), SPEC.replace(**changes))
    layer = PQLinear(PQWeight.from_pq(pq), torch.zeros(24))
    layer.weight.make_trainable()
    return layer


@pytest.mark.parametrize("pooled", [False, True])
def test_the_gradient_of_codewords_is_a_sum_over_their_subvectors(pooled):
    """The dense gradient is added up by slots, then by vectors of the pool."""
    pool = {"pool": PoolSpec(method="wkmeans", size=20)} if pooled else {}
    layer = one_layer(row_scale=False, **pool)
    weight, p = layer.weight, layer.weight.partition
    x = torch.randn(8, 16)
    layer(x).square().sum().backward()
    dense = weight.decode().detach().requires_grad_(True)
    nn.functional.linear(x, dense).square().sum().backward()
    codes = unpack(weight.codes, p.code_bits, p.points)
    expected = torch.zeros(p.codebooks, p.K, p.d)
    for j in range(p.groups):
        for r in range(p.points):
            expected[j // p.groups_per_codebook, codes[j, r]] += dense.grad[
                r, j * p.d : (j + 1) * p.d
            ]
    found = weight.codebooks.grad if not pooled else weight.pool.grad
    if pooled:
        index = unpack(weight.index_map, p.index_bits, p.K)
        by_slot, expected = expected, torch.zeros_like(weight.pool)
        for c in range(p.codebooks):
            for k in range(p.K):
                expected[index[c, k]] += by_slot[c, k]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_codewords_move_in_proportion_to_their_size():
    task = Regression()
    layers = quantized_layers(task)
    parameters = {n: p for n, p in task.student.named_parameters() if p.requires_grad}
    group = {"params": [parameters["0.norm.weight"]], "lr_scale": 3.0}
    found = rates(parameters, layers, [group])
    books = parameters["0.up.weight.codebooks"]
    assert found["0.up.weight.codebooks"] == pytest.approx(
        float(books.detach().square().mean().sqrt()) / TYPICAL_RMS
    )
    assert found["0.up.bias"] == 1
    assert found["0.norm.weight"] == 3


def test_the_first_step_has_the_length_of_the_learning_rate():
    layer = one_layer()
    parameters = dict(layer.named_parameters())
    before = snapshot(layer)
    mstep = MStep(parameters, {"bias": 5.0}, CalibrateSettings(lr=1e-3, clip=0), Workers())
    x = torch.randn(8, 16)
    mstep.step(lambda b: (layer(b["x"]) - 1).square().mean(), {"x": x}, 1.0, 0.5)
    moved = (layer.bias.detach() - before["bias"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5 * 5 * 1e-3))
    moved = (layer.weight.codebooks.detach() - before["weight.codebooks"]).abs()
    assert float(moved.max()) == pytest.approx(0.5e-3, rel=1e-3)


def test_a_task_may_choose_options_of_adamw_for_its_parameters():
    layer = one_layer()
    parameters = dict(layer.named_parameters())
    group = {"params": [layer.bias], "lr_scale": 2.0, "betas": (0.5, 0.6), "eps": 7.0}
    own = adamw_options(parameters, [group])
    assert own == {
        name: {"betas": (0.5, 0.6), "eps": 7.0} if name == "bias" else {} for name in parameters
    }
    settings = CalibrateSettings(lr=1e-3, betas=(0.8, 0.9), clip=0)
    mstep = MStep(parameters, {}, settings, Workers(), adamw=own)
    before = snapshot(layer)
    x = torch.randn(8, 16)
    mstep.step(lambda b: (layer(b["x"]) - 1).square().mean(), {"x": x}, 1.0, 1.0)
    # A first step is lr g / (|g| + eps), whatever the betas; moments tell those.
    expected = before["bias"] - 1e-3 * layer.bias.grad / (layer.bias.grad.abs() + 7.0)
    torch.testing.assert_close(layer.bias.detach(), expected)
    moments, grads = mstep.tensors(), {n: p.grad for n, p in parameters.items()}
    for name, beta in (("bias", 0.5), ("weight.codebooks", 0.8)):
        torch.testing.assert_close(moments[f"{name}/exp_avg"], (1 - beta) * grads[name])


def test_clipping_bounds_the_norm_of_the_gradient():
    layer = one_layer()
    mstep = MStep(dict(layer.named_parameters()), {}, CalibrateSettings(clip=0.1), Workers())
    mstep.step(lambda b: 1e3 * layer(b["x"]).square().mean(), {"x": torch.randn(8, 16)}, 1.0, 1.0)
    norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-4)


def test_new_codewords_start_without_moments():
    layer = one_layer()
    name = "weight.codebooks"
    mstep = MStep(dict(layer.named_parameters()), {}, CalibrateSettings(), Workers())
    for _ in range(3):
        mstep.step(lambda b: layer(b["x"]).square().mean(), {"x": torch.randn(8, 16)}, 1.0, 1.0)
    rows = torch.tensor([1, 5])
    before = {key: value.clone() for key, value in mstep.tensors().items()}
    mstep.forget(name, rows)
    for key in ("exp_avg", "exp_avg_sq"):
        now = mstep.tensors()[f"{name}/{key}"].view(-1, SPEC.d)
        was = before[f"{name}/{key}"].view(-1, SPEC.d)
        assert float(was[rows].abs().sum()) > 0
        assert float(now[rows].abs().sum()) == 0
        rest = torch.ones(len(now), dtype=torch.bool)
        rest[rows] = False
        assert torch.equal(now[rest], was[rest])
    assert mstep.tensors()[f"{name}/step"] == before[f"{name}/step"] == 3


def test_moments_can_be_loaded():
    def trained(steps: int, load=None):
        layer = one_layer()
        mstep = MStep(dict(layer.named_parameters()), {}, CalibrateSettings(), Workers())
        if load:
            restore(layer, load[0])
            mstep.load(load[1])
        for i in range(steps):
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(i + (3 if load else 0)))
            mstep.step(lambda b: layer(b["x"]).square().mean(), {"x": x}, 1.0, 1.0)
        return snapshot(layer), {k: v.clone() for k, v in mstep.tensors().items()}

    whole = trained(5)
    resumed = trained(2, load=trained(3))
    for a, b in zip(whole, resumed, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_prepare_student_trains_codewords_and_small_parameters():
    layer = one_layer()
    model = nn.ModuleDict(
        {"pq": layer, "norm": nn.LayerNorm(4), "head": nn.Linear(400, 200, dtype=torch.bfloat16)}
    ).half()
    layer.weight.codebooks.data = layer.weight.codebooks.data.half()
    prepare_student(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "pq.weight.codebooks",
        "pq.weight.row_scale",
        "pq.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
    }
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
