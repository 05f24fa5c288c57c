"""PQLinear and PQEmbedding against the plain reference."""

from __future__ import annotations

import pytest
import torch
from builders import random_pq
from tolerances import assert_same_sums

from dpq_core.runtime import PQConv2d, PQEmbedding, PQLinear, PQWeight, decoding, reference
from dpq_core.spec import PoolSpec, QuantSpec
from dpq_core.tensor.partition import Layout

pytestmark = pytest.mark.portable

SPECS = {
    "pq": QuantSpec(d=4, K=64, scope="subspace"),
    "vq": QuantSpec(d=8, K=256, scope="tensor"),
    "tied-odd": QuantSpec(d=3, K=100, scope=4),
    "outputs": QuantSpec(d=4, K=32, scope="tensor", orientation="output"),
    "outputs-tied": QuantSpec(d=5, K=16, scope=3, orientation="output", row_scale=False),
    "scalar": QuantSpec(d=1, K=256, scope="tensor"),
    "16-bit": QuantSpec(d=2, K=300, scope="tensor", row_scale=False),
    "wide-code": QuantSpec(d=2, K=65_536, scope="tensor"),
    "long": QuantSpec(d=64, K=16, scope="subspace"),
    "stages": QuantSpec(d=4, K=16, scope=2, stages=3),
    "stages-outputs": QuantSpec(d=3, K=256, scope="tensor", stages=2, orientation="output"),
    "pool": QuantSpec(d=4, K=64, scope="subspace", pool=PoolSpec(method="wkmeans", size=100)),
    "pool-int8": QuantSpec(
        d=4,
        K=16,
        scope="subspace",
        codebook_dtype="int8",
        pool=PoolSpec(method="greedy", size=33, packed=False),
    ),
    "int8": QuantSpec(d=3, K=256, scope=4, codebook_dtype="int8"),
    "group-scale": QuantSpec(d=4, K=256, scope="tensor", group_scale=True),
    "permuted": QuantSpec(d=4, K=256, scope="subspace", permute=True, row_scale=False),
    "rht": QuantSpec(d=8, K=256, scope="tensor", transform="rht"),
    "rht-outputs": QuantSpec(d=4, K=16, transform="rht", orientation="output", stages=2),
    "trellis": QuantSpec(d=2, K=1024, trellis_rate=2.0),
    "trellis-rht": QuantSpec(d=2, K=1024, trellis_rate=1.9, transform="rht", row_scale=False),
    "all": QuantSpec(
        d=4, K=16, stages=2, codebook_dtype="int8", group_scale=True, transform="rht", scope=3
    ),
}
SHAPE = (333, 90)


@pytest.fixture(params=SPECS.values(), ids=SPECS)
def pq(request: pytest.FixtureRequest):
    return random_pq(SHAPE, request.param)


@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 64])
def test_linear_equals_the_reference(pq, tokens):
    x = torch.randn(tokens, SHAPE[1], generator=torch.Generator().manual_seed(1))
    bias = torch.randn(SHAPE[0], generator=torch.Generator().manual_seed(2))
    layer = PQLinear(PQWeight.from_pq(pq), bias)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), reference.linear(x, pq, bias), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer(x), reference.linear(x, pq, bias), rtol=1e-4, atol=1e-3)


def assert_same_rows(found, pq, index=slice(None)):
    """Bit for bit where rows are gathered and scaled, up to rounding where they are rotated."""
    rows = pq.decode()
    if pq.spec.transform == "none":
        assert torch.equal(found, rows[index])
        return
    # Every entry is a sum over the rows and columns of the core, whose norm a rotation keeps.
    assert_same_sums(found, rows[index], length=sum(SHAPE), magnitude=float(rows.norm()))


def test_weight_decodes_to_the_stored_tensor(pq):
    assert_same_rows(PQWeight.from_pq(pq).decode(torch.float32), pq)


def test_chunks_do_not_change_the_result(pq, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 4096)
    assert_same_rows(PQWeight.from_pq(pq).decode(torch.float32), pq)


def test_embedding_equals_the_reference(pq):
    index = torch.tensor([[0, 332, 5], [7, 7, 100]])
    layer = PQEmbedding(PQWeight.from_pq(pq))
    assert torch.equal(
        reference.embedding(index, pq, torch.float32), pq.decode(torch.float32)[index]
    )
    assert_same_rows(layer(index), pq, index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_decide_the_dtype(pq, dtype):
    x = torch.randn(3, SHAPE[1], dtype=dtype)
    with torch.no_grad():
        assert PQLinear(PQWeight.from_pq(pq))(x).dtype == dtype


def test_forward_and_backward_never_change_the_state(pq):
    layer = PQLinear(PQWeight.from_pq(pq), torch.zeros(SHAPE[0]))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(9, SHAPE[1])).sum().backward()
    with torch.no_grad():
        layer(torch.randn(1, SHAPE[1]))
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_state_names_are_the_stored_names(pq):
    names = set(PQLinear(PQWeight.from_pq(pq)).state_dict())
    assert names == {f"weight.{part}" for part in pq.parts()}


def test_codebook_gradient_is_the_scatter_add_of_the_weight_gradient():
    spec = QuantSpec(d=4, K=16, scope="subspace", codebook_dtype="float32")
    pq = random_pq((40, 24), spec)
    layer = PQLinear(PQWeight.from_pq(pq))
    x = torch.randn(10, 24)
    layer(x).square().sum().backward()
    dense = pq.decode().requires_grad_()
    torch.nn.functional.linear(x, dense).square().sum().backward()
    p = pq.partition
    expected = torch.zeros_like(pq.stored["codebooks"])
    scaled = dense.grad * pq.stored["row_scale"].float()[:, None]
    for group in range(p.groups):
        block = scaled[:, group * p.d : (group + 1) * p.d]
        expected[group].index_add_(0, pq.codes_of(group).long(), block)
    torch.testing.assert_close(layer.weight.codebooks.grad, expected, rtol=1e-4, atol=1e-3)


def test_embedding_of_an_embedding_layout():
    pq = random_pq((100, 16), QuantSpec(d=4, K=32), Layout.EMBEDDING)
    layer = PQEmbedding(PQWeight.from_pq(pq), padding_idx=0, dtype=torch.bfloat16)
    out = layer(torch.arange(100))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, pq.decode(torch.bfloat16))


@pytest.mark.parametrize("conv_layout", ["spatial", "channel"])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": 3, "stride": 2, "dilation": 2, "groups": 2, "padding": 1},
        {"kernel_size": (3, 5), "padding": "same", "padding_mode": "reflect"},
    ],
    ids=["3x3", "1x1", "grouped", "reflect"],
)
def test_convolution_equals_conv2d_on_the_decoded_kernel(conv_layout, geometry, monkeypatch):
    conv = torch.nn.Conv2d(6, 20, **geometry)
    spec = QuantSpec(d=3, K=64, scope="tensor", conv_layout=conv_layout)
    pq = random_pq(tuple(conv.weight.shape), spec, Layout.CONV)
    layer = PQConv2d(PQWeight.from_pq(pq), conv)
    x = torch.randn(2, 6, 9, 11)
    conv.weight = torch.nn.Parameter(pq.decode())
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 2048)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-4)
    assert set(layer.state_dict()) - {"bias"} == {f"weight.{part}" for part in pq.parts()}


@pytest.mark.parametrize("name", ["vq", "stages-256", "permuted", "own"])
def test_few_tokens_are_tabulated_with_their_scales_and_bias(name, monkeypatch):
    specs = {
        "stages-256": QuantSpec(d=4, K=256, scope="tensor", stages=2),
        "own": QuantSpec(d=4, K=256, scope="subspace", group_scale=True),
    }
    pq = random_pq(SHAPE, {**SPECS, **specs}[name])
    monkeypatch.setattr(PQWeight, "core_chunks", None)  # nothing is decoded
    bias = torch.randn(SHAPE[0], generator=torch.Generator().manual_seed(2))
    layer = PQLinear(PQWeight.from_pq(pq), bias)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)):
        x = torch.randn(3, SHAPE[1], generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            found = layer(x).float()
        expected = reference.linear(x.float(), pq, bias)
        assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "scope"), [(3, 7), (4, 7), (4, "subspace"), (40, "tensor")])
def test_tiles_of_whole_cache_lines_hold_every_codeword(d, scope, dtype, monkeypatch):
    monkeypatch.setattr(decoding, "TILE_BYTES", 40 * 170 * dtype.itemsize)
    pq = random_pq((133, 170), QuantSpec(d=d, K=16, scope=scope, row_scale=False))
    weight = PQWeight.from_pq(pq).requires_grad_(False)
    chunks = [(first, rows.clone()) for first, rows in weight.core_chunks(dtype, tiled=True)]
    assert [first for first, _ in chunks] == [0, 40, 80, 120]
    assert torch.equal(torch.cat([rows for _, rows in chunks]), pq.core().to(dtype))
