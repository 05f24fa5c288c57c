"""quantize(): exact where it can be, honest error, deterministic, clear about bad weights."""

from __future__ import annotations

import pytest
import torch
from groupings import grouped
from hypothesis import given, settings
from strategies import conv_shapes, matrix_shapes, specs_up_to

from dpq_core.errors import SpecError
from dpq_core.kernels.cpu import row_products
from dpq_core.methods.quantize import quantize, tensor_seed
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_core.tensor.partition import Layout, Partition

pytestmark = pytest.mark.portable

FAST = KMeansSpec(iterations=4, tail=1)


def run(weight, layout=Layout.LINEAR, name="w", **changes):
    spec = QuantSpec(**{"kmeans": FAST, "codebook_dtype": "float32", **changes})
    return quantize(weight, Partition.of(tuple(weight.shape), layout, spec), spec, name)


def measured_error(weight, result):
    lost = (weight.double() - result.pq.decode(torch.float64)).square().sum()
    return float(lost / weight.double().square().sum())


@settings(max_examples=25, deadline=None)
@given(matrix_shapes, specs_up_to(d=8, K=64))
def test_reported_error_is_that_of_the_decoded_matrix(shape, spec):
    check_error(torch.randn(shape), Layout.LINEAR, spec)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(conv_shapes, specs_up_to(d=8, K=64))
def test_reported_error_is_that_of_the_decoded_convolution(shape, spec):
    check_error(torch.randn(shape), Layout.CONV, spec)


def check_error(weight, layout, spec):
    spec = spec.replace(kmeans={"iterations": 2, "tail": 1})
    result = quantize(weight, Partition.of(tuple(weight.shape), layout, spec), spec)
    assert result.relative_error == pytest.approx(
        measured_error(weight, result), rel=1e-3, abs=1e-6
    )
    assert result.pq.decode().shape == weight.shape


def test_a_codeword_per_subvector_is_lossless():
    weight = torch.randn(64, 24)
    kmeans = KMeansSpec(iterations=4, tail=1, noise_power=0)
    result = run(weight, d=4, K=64, scope="subspace", row_scale=False, kmeans=kmeans)
    assert torch.equal(result.pq.decode(), weight)
    assert result.relative_error == 0


def test_weights_made_of_codewords_are_recovered():
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(6, 8, 4, generator=generator)
    codes = torch.randint(8, (6, 512), generator=generator)
    weight = torch.stack([words[g][codes[g]] for g in range(6)], 1).reshape(512, 24)
    kmeans = KMeansSpec(iterations=10, tail=2, init="kmeans++")
    result = run(weight, d=4, K=16, scope="subspace", row_scale=False, kmeans=kmeans)
    assert result.relative_error < 1e-10


def test_more_bits_and_row_scales_lower_the_error():
    weight = torch.randn(512, 128) * torch.rand(512, 1).add(0.1)
    errors = [run(weight, d=d).relative_error for d in (8, 4, 3, 2, 1)]
    assert errors == sorted(errors, reverse=True)
    assert run(weight, d=4).relative_error < run(weight, d=4, row_scale=False).relative_error


def test_same_input_spec_and_name_give_the_same_bytes():
    weight = torch.randn(300, 70)
    first, second = run(weight), run(weight)
    assert all(torch.equal(second.pq.parts()[n], t) for n, t in first.pq.parts().items())
    other = run(weight, name="another")
    assert not torch.equal(other.pq.stored["codebooks"], first.pq.stored["codebooks"])


def test_seeds_depend_on_name_and_seed_only():
    assert tensor_seed(0, "a") == tensor_seed(0, "a")
    assert len({tensor_seed(s, n) for s in range(3) for n in "abc"}) == 9
    assert 0 <= tensor_seed(2**63 - 1, "x") < 2**63


def test_zero_rows_stay_zero():
    weight = torch.randn(40, 16)
    weight[7] = 0
    result = run(weight, d=4, K=4, scope="tensor")
    assert result.pq.stored["row_scale"][7] == 0
    assert result.pq.decode()[7].abs().sum() == 0


def test_an_all_zero_weight_has_no_error():
    assert run(torch.zeros(16, 16)).relative_error == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_weights_are_named(value):
    weight = torch.ones(8, 8)
    weight[3, 3] = value
    with pytest.raises(SpecError, match=r"tensor .bad\.weight. holds NaN or infinite"):
        run(weight, name="bad.weight")


@pytest.mark.parametrize(
    ("value", "shown"), [(1e30, r"\[3, 5\] is 1e\+30"), (float("nan"), r"\[3, 5\] is nan")]
)
@pytest.mark.parametrize("changes", [{}, {"permute": True}, {"transform": "rht"}], ids=str)
def test_values_that_cannot_be_quantized_are_named_with_their_index(value, shown, changes):
    weight = torch.ones(8, 8)
    weight[3, 5] = value
    with pytest.raises(SpecError, match=rf"tensor .bad\.weight. holds .* \(index {shown}\)"):
        run(weight, name="bad.weight", **changes)


def test_codebooks_that_overflow_say_what_to_do():
    with pytest.raises(SpecError, match="codebook_dtype=float32"):
        run(torch.full((8, 8), 1e6), row_scale=False, codebook_dtype="float16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_original_dtype_comes_back(dtype):
    assert run(torch.randn(32, 32).to(dtype)).pq.decode().dtype == dtype


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize(("sharing", "groups", "stages"), [(1, 5, 1), (3, 7, 2), (7, 7, 3)])
def test_both_kernels_of_row_products_are_the_plain_sums(sharing, groups, stages, across):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(groups, 4, 1500, generator=generator)
    C = -(-groups // sharing)
    books = torch.randn(stages * C, 16, 4, generator=generator)
    codes = torch.randint(16, (stages * groups, 1500), generator=generator, dtype=torch.int32)
    weights = torch.rand(groups, 4, generator=generator, dtype=torch.float64)
    words = torch.stack(
        [
            sum(books[s * C + g // sharing][codes[s * groups + g].long()].T for s in range(stages))
            for g in range(groups)
        ]
    )
    pairs = [(points, points), (points, words), (words, words)]
    products = [(a * b).double() * weights[:, :, None] for a, b in pairs]
    sums = [v.sum((0, 1)) if across else v.sum(2).view(-1) for v in products]
    expected = torch.stack(sums, dim=1)
    grouping = grouped(points, sharing, stages=stages)
    fast = row_products.row_products(points, codes, books, grouping, weights=weights, across=across)
    torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-4)
    plain = row_products._by_torch(points, codes, books, sharing, weights, across)
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("orientation", ["input", "output"])
@pytest.mark.parametrize("d", [2, 8])
def test_rows_keep_their_length_along_themselves(orientation, d):
    """The shrinkage of centroids would add up from layer to layer."""
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    decoded = run(weight, d=d, K=64, scope="tensor", orientation=orientation).pq.decode()
    along = (weight * decoded).sum(1) / weight.square().sum(1)
    torch.testing.assert_close(along, torch.ones(96), rtol=2e-3, atol=0)
    plain = run(weight, d=d, K=64, scope="tensor", orientation=orientation, row_scale=False)
    assert (weight * plain.pq.decode()).sum() < 0.99 * weight.square().sum()
