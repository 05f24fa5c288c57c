"""Products by look-up tables: every variant that this processor can run, against one reference."""

from __future__ import annotations

import math

import pytest
import torch
from builders import random_pq

from dpq_core.errors import SpecError
from dpq_core.kernels.cpu import lut
from dpq_core.spec import QuantSpec

SPECS = {
    "shared": QuantSpec(d=4, K=256, scope="tensor"),
    "several": QuantSpec(d=4, K=256, scope=5),
    "own": QuantSpec(d=3, K=200, scope="subspace"),
    "stages": QuantSpec(d=4, K=256, scope=3, stages=2),
    "long": QuantSpec(d=12, K=130, scope="tensor"),
    "scalar": QuantSpec(d=1, K=256, scope="tensor"),
}
SHAPES = [(64, 128), (333, 90), (256 + 64 + 1, 4 * 33), (63, 600)]
CASES = [
    pytest.param(spec, shape, id=f"{name}-{shape[0]}x{shape[1]}")
    for name, spec in SPECS.items()
    for shape in SHAPES
    if name != "own" or shape[0] >= spec.K  # fewer rows would have fewer codewords
]

variants = pytest.mark.parametrize("variant", lut.usable(), ids=lambda each: each.name)


def inputs(tokens, cols, seed=0):
    """Activations with outliers."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randn(cols, generator=generator).exp()
    return torch.randn(tokens, cols, generator=generator) * scales


def relative_error(x, pq, **options):
    found = lut.multiply(x, pq.books(), pq.codes, pq.partition, **options)
    expected = x.double() @ pq.core().double().T
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@variants
@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize(("spec", "shape"), CASES)
def test_every_variant_computes_the_product(spec, shape, precise, variant):
    pq = random_pq(shape, spec)
    for tokens in (1, 3):
        error = relative_error(inputs(tokens, shape[1]), pq, precise=precise, variant=variant)
        assert error < (2e-6 if precise else 5e-4)


@variants
def test_threads_do_not_change_the_sums(variant):
    pq = random_pq((1000, 512), SPECS["shared"])
    x, found = inputs(4, 512), []
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(lut.multiply(x, pq.books(), pq.codes, pq.partition, variant=variant))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@variants
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_has_no_finite_outputs(value, variant):
    pq = random_pq((70, 300), SPECS["shared"])
    x = inputs(2, 300)
    x[1, 7] = value
    out = lut.multiply(x, pq.books(), pq.codes, pq.partition, variant=variant)
    assert bool(out[0].isfinite().all())
    assert not bool(out[1].isfinite().any())


@variants
@pytest.mark.parametrize("magnitude", [0.0, 1e-42, 1e-30, 1e30])
def test_tokens_of_any_magnitude(magnitude, variant):
    pq = random_pq((70, 300), SPECS["shared"])
    x = inputs(1, 300)
    out = lut.multiply(x * magnitude, pq.books(), pq.codes, pq.partition, variant=variant)
    expected = (x * magnitude).double() @ pq.core().double().T
    assert bool(((out - expected).norm() <= 1e-5 * expected.norm() + 1e-36).all())


def test_the_best_variant_comes_first_and_is_explained(monkeypatch):
    assert lut.usable()[-1].name == "portable"
    monkeypatch.setattr(lut, "features", lambda: frozenset({"avx2", "avx512f"}))
    assert [each.name for each in lut.usable()] == ["avx2", "portable"]
    assert lut.explain() == "avx2; no avx512bw, avx512vbmi for avx512vbmi"
    pq = random_pq((70, 30), SPECS["shared"])
    with pytest.raises(SpecError, match="avx512vbmi cannot be used here"):
        relative_error(inputs(1, 30), pq, variant=lut.VARIANTS[0])


def test_codes_of_16_bits_have_the_loop_only():
    pq = random_pq((8000, 12), QuantSpec(d=2, K=40_000, scope="tensor"))
    codes = pq.codes.view(torch.uint16)
    x, p = inputs(2, 12), pq.partition
    expected = x.double() @ pq.core().double().T
    found = lut.multiply(x, pq.books(), codes, p)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    with pytest.raises(SpecError, match="cannot be used"):
        lut.multiply(x, pq.books(), codes, p, variant=lut.VARIANTS[0])
