"""Operators of quantized weights: traces, exports, autocast and gradients of inputs."""

from __future__ import annotations

import pytest
import torch
from builders import random_pq

from dpq_core.runtime import PQConv2d, PQEmbedding, PQLinear, PQWeight, operators, reference
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Layout

ROWS, COLS = 48, 30

SPECS = {
    "permuted": QuantSpec(d=4, K=256, scope=3, permute=True, group_scale=True),
    "stages-pool-free": QuantSpec(d=3, K=16, scope="tensor", stages=2, row_scale=False),
    "outputs": QuantSpec(d=4, K=32, scope="tensor", orientation="output"),
    "rotated": QuantSpec(d=4, K=256, scope="tensor", transform="rht"),
}


@pytest.fixture(params=SPECS.values(), ids=SPECS)
def weight(request):
    return frozen(PQWeight.from_pq(random_pq((ROWS, COLS), request.param)))


def frozen(module):
    return module.requires_grad_(False)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Everything(torch.nn.Module):
    """An embedding, a convolution and a linear layer, all quantized, one after the other."""

    def __init__(self, spec):
        super().__init__()
        table = random_pq((50, COLS), spec, Layout.EMBEDDING)
        self.embedding = PQEmbedding(PQWeight.from_pq(table))
        conv = torch.nn.Conv2d(2, 8, 3, padding=1)
        kernel = random_pq((8, 2, 3, 3), spec.replace(d=3, scope="tensor"), Layout.CONV)
        self.conv = PQConv2d(PQWeight.from_pq(kernel), conv)
        matrix = random_pq((ROWS, COLS), spec)
        self.linear = PQLinear(PQWeight.from_pq(matrix), normal(ROWS))

    def forward(self, index):
        x = self.embedding(index)  # [N, COLS]
        image = x.reshape(-1, 1, 5, COLS // 5).expand(-1, 2, -1, -1)
        return self.linear(x + self.conv(image).mean(1).reshape(x.shape))


@pytest.fixture(params=SPECS.values(), ids=SPECS)
def everything(request):
    return Everything(request.param)


INDEX = torch.tensor([3, 0, 49])


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_one_graph_holds_the_whole_model(everything, backend):
    torch._dynamo.reset()
    frozen(everything)
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    for index in (INDEX, torch.arange(17)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(index), everything(index), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SPECS) - {"rotated"}))  # its factors are no graph
def test_one_graph_holds_the_training_of_a_model(name):
    everything = Everything(SPECS[name])
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    found = []
    for model in (everything, compiled):
        everything.zero_grad()
        model(INDEX).square().sum().backward()
        found.append({n: p.grad for n, p in everything.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() != set()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name].float(), gradient.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_model_computes_the_same(everything, trained, tmp_path):
    everything.requires_grad_(trained)
    with torch.set_grad_enabled(trained):
        program = torch.export.export(everything, (INDEX,))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(loaded(INDEX), everything(INDEX), rtol=1e-4, atol=1e-3)


def test_operators_keep_the_rules_of_torch(weight):
    operands = weight.operands()
    x = normal(5, COLS).requires_grad_()
    torch.library.opcheck(operators.linear, (x, *operands))
    gradient = normal(5, ROWS).requires_grad_()
    torch.library.opcheck(operators.linear_back, (gradient, *operands))
    torch.library.opcheck(operators.decode, (*operands, torch.bfloat16))
    torch.library.opcheck(operators.rows, (INDEX.clamp(max=9), *operands, torch.float32))


@pytest.mark.parametrize("tokens", [1, 9])
def test_gradients_of_inputs_pass_through_a_trace(weight, tokens):
    torch._dynamo.reset()
    layer = PQLinear(weight, normal(ROWS, seed=1))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = normal(tokens, COLS, seed=2).requires_grad_()
    found = [
        torch.autograd.grad(run(x).square().sum(), (x, layer.bias)) for run in (layer, compiled)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


def test_operators_can_be_differentiated_twice(weight):
    dense, x = weight.decode(torch.float32), normal(3, COLS, seed=2).requires_grad_()

    def second(run):
        gradient = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    found = second(lambda x: operators.linear(x, *weight.operands()))
    expected = second(lambda x: torch.nn.functional.linear(x, dense))
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_autocast_computes_linear_layers_in_its_dtype(weight, tokens, dtype, grad):
    layer, x = PQLinear(weight, normal(ROWS, seed=1)), normal(tokens, COLS, seed=2)
    expected = torch.nn.functional.linear(x, weight.decode(torch.float32), layer.bias)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
        out = layer(x.requires_grad_(grad))
        assert out.dtype == dtype == torch.nn.Linear(COLS, ROWS)(x).dtype
    assert (out.float() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_whole_models(everything, dtype):
    expected = everything(INDEX)
    with torch.autocast("cpu", dtype):
        assert everything.embedding(INDEX).dtype == torch.float32
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                out = everything(INDEX)
            assert out.dtype == dtype
            assert (out.float() - expected).norm() < 2e-2 * expected.norm()
        torch._dynamo.reset()
        compiled = torch.compile(frozen(everything), fullgraph=True, backend="eager")
        with torch.no_grad():
            assert (compiled(INDEX).float() - expected).norm() < 2e-2 * expected.norm()


def test_float64_stays_under_autocast(weight):
    x = normal(2, COLS).double()
    with torch.no_grad(), torch.autocast("cpu"):
        out = PQLinear(weight)(x)
    expected = reference.linear(x, weight.pq())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)
