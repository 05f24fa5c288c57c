"""Quantized layers as layers of the kind that they replace: gradients, casts, assigned weights."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import random_pq
from torch import nn

from dpq_core.runtime import PQConv2d, PQEmbedding, PQLinear, PQWeight, decoding
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Layout

SPECS = {
    "plain": QuantSpec(d=4, K=16),
    "outputs": QuantSpec(d=4, K=16, orientation="output"),
    "permuted": QuantSpec(d=4, K=16, scope="subspace", permute=True, row_scale=False),
    "rotated": QuantSpec(d=8, K=16, scope="tensor", transform="rht", group_scale=True),
}


def frozen_linear(spec=SPECS["plain"], shape=(48, 24), bias=True):
    pq = random_pq(shape, spec)
    values = torch.randn(shape[0], generator=torch.Generator().manual_seed(2)) if bias else None
    return PQLinear(PQWeight.from_pq(pq), values).requires_grad_(False)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_gradients_pass_through_a_frozen_linear_that_decodes_again(spec, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 2048)
    layer = frozen_linear(spec)
    layer.bias.requires_grad_(True)
    x, saved = torch.randn(2, 9, 24, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.shape), lambda _: None
    ):
        y = layer(x)
    assert saved == []
    frozen_linear(SPECS["plain"])(torch.ones(40, 24))  # another layer uses the same memory
    y.backward(torch.ones_like(y).cumsum(1))
    twin, bias = x.detach().requires_grad_(True), layer.bias.detach().requires_grad_(True)
    expected = nn.functional.linear(twin, layer.weight.decode(torch.float32), bias)
    expected.backward(torch.ones_like(y).cumsum(1))
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, bias.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "dilation": 2, "groups": 2, "padding": "same"},
        {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "circular", "bias": False},
    ],
    ids=["strided", "grouped", "circular"],
)
def test_gradients_pass_through_a_frozen_convolution(geometry):
    conv = nn.Conv2d(6, 20, **geometry)
    pq = random_pq(tuple(conv.weight.shape), QuantSpec(d=3, K=64, scope="tensor"), Layout.CONV)
    layer = PQConv2d(PQWeight.from_pq(pq), conv).requires_grad_(False)
    conv.weight = nn.Parameter(pq.decode())
    x = torch.randn(2, 6, 9, 11, requires_grad=True)
    twin = x.detach().requires_grad_(True)
    layer(x).square().sum().backward()
    conv(twin).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-3)


def layers():
    embedding = random_pq((50, 16), SPECS["plain"], Layout.EMBEDDING)
    conv = nn.Conv2d(4, 8, 3)
    kernel = random_pq(tuple(conv.weight.shape), SPECS["plain"], Layout.CONV)
    return [
        (frozen_linear(), torch.randn(5, 24)),
        (PQEmbedding(PQWeight.from_pq(embedding), 0).requires_grad_(False), torch.arange(50)),
        (PQConv2d(PQWeight.from_pq(kernel), conv).requires_grad_(False), torch.randn(1, 4, 6, 6)),
    ]


KINDS = [nn.Linear, nn.Embedding, nn.Conv2d]


@pytest.mark.parametrize("index", range(3), ids=["linear", "embedding", "conv"])
def test_casts_change_the_activations_and_keep_the_stored_parts(index):
    layer, x = layers()[index]
    before = {name: part.clone() for name, part in layer.weight.state_dict().items()}
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
        layer.to(dtype)
        assert layer.weight.dtype == dtype
        assert layer(x.to(dtype) if x.is_floating_point() else x).dtype == dtype
        for name, part in layer.weight.state_dict().items():
            assert part.dtype == before[name].dtype
            assert torch.equal(part, before[name])
    assert layer.half().weight.dtype == torch.float16
    assert copy.deepcopy(layer).weight.dtype == torch.float16


@pytest.mark.parametrize("index", range(3), ids=["linear", "embedding", "conv"])
def test_an_assigned_weight_makes_the_layer_dense(index):
    layer, x = layers()[index]
    copied, before = copy.deepcopy(layer), layer(x)
    assert isinstance(layer, KINDS[index])
    assert layer.weight.size() == layer.weight.data.shape
    assert layer.weight.numel() == layer.weight.data.numel()
    copied.weight.data += 1  # as adapters are merged
    assert type(copied) is KINDS[index]
    assert isinstance(copied.weight, nn.Parameter)
    assert not copied.weight.requires_grad
    assert torch.equal(copied.weight, layer.weight.decode(torch.float32) + 1)
    copied.weight.data -= 1
    torch.testing.assert_close(copied(x), before, rtol=1e-4, atol=1e-4)
    assert isinstance(layer.weight, PQWeight)
    assert torch.equal(layer(x), before)


def test_the_type_of_a_layer_makes_dense_ones():
    assert type(type(layers()[0][0])(3, 4, bias=False)) is nn.Linear
    assert type(type(layers()[1][0])(num_embeddings=3, embedding_dim=4)) is nn.Embedding
    assert type(type(layers()[2][0])(4, 2, kernel_size=3)) is nn.Conv2d


def test_what_is_written_into_the_decoded_weight_reaches_the_layer():
    layer, expected = frozen_linear(), frozen_linear().weight.decode(torch.float32)
    handle = layer.weight
    assert torch.equal(handle[3:5], expected[3:5])
    torch.testing.assert_close(torch.cat([handle, handle]), torch.cat([expected, expected]))
    assert isinstance(layer.weight, PQWeight)
    handle.data[0] = 7
    assert type(layer) is nn.Linear
    handle.data.mul_(2)
    assert torch.equal(layer.weight[1:], expected[1:] * 2)
    assert layer.weight[0].unique().tolist() == [14]
    assert type(layer.weight.data) is torch.Tensor


def test_a_dense_state_makes_a_layer_dense():
    layer, dense = frozen_linear(), nn.Linear(24, 48)
    layer.load_state_dict(dense.state_dict())
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, dense.weight)


def test_layers_that_share_a_weight_become_dense_together():
    table = PQWeight.from_pq(random_pq((50, 16), SPECS["plain"], Layout.EMBEDDING))
    model = nn.ModuleList([PQEmbedding(table), PQLinear(table)])
    twin = copy.deepcopy(model)
    twin[0].weight.data = torch.zeros(60, 16)
    assert twin[1].weight is twin[0].weight
    assert twin[1](torch.ones(1, 16)).shape == (1, 60)
    assert model[0].weight is model[1].weight is table
