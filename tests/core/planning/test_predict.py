"""curve(): the error that a small sample predicts is the one that quantizing leaves."""

from __future__ import annotations

import math

import pytest
import torch

from dpq_core.methods.quantize import quantize
from dpq_core.planning import predict
from dpq_core.planning.predict import Curve, curve
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Layout, Partition

PLAIN = QuantSpec(d=4, K=256, scope="tensor", orientation="input", row_scale=False)


def partition_of(matrix, spec):
    return Partition.of(tuple(matrix.shape), Layout.LINEAR, spec)


def curve_of(matrix, spec=PLAIN, name="w"):
    return curve(matrix, partition_of(matrix, spec), spec, name)


def drawn(rows, cols, seed=0):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def test_errors_lie_on_a_line_over_the_bits_of_a_code():
    found = Curve(d=4, K=256, error=0.25, slope=0.5)
    assert [found.at(K) for K in (256, 1024, 64)] == pytest.approx([0.25, 0.125, 0.5])


@pytest.mark.parametrize(
    "changes",
    [{}, {"row_scale": True}, {"orientation": "output"}, {"d": 2}, {"d": 8}],
    ids=lambda c: "+".join(c) or "plain",
)
@pytest.mark.parametrize("K", [32, 512])
def test_the_predicted_error_is_the_one_that_is_left(changes, K):
    spec = PLAIN.replace(K=K, **changes)
    matrix = drawn(1024, 256) * torch.linspace(0.2, 3, 1024)[:, None]
    spec = spec.replace(kmeans={"iterations": 6, "tail": 1})
    left = quantize(matrix, partition_of(matrix, spec), spec, "w").relative_error
    if spec.row_scale:
        left /= (
            1 + left
        )  # rows are stored as long as they were: D / (1 - D)  (dpq_core.tensor.basis.gain)
    assert curve_of(matrix, spec).at(K) == pytest.approx(left, rel=0.17)


def test_the_slope_of_noise_is_that_of_theory():
    """High-rate quantization: the error falls as K^(-2 / d)."""
    for d in (1, 2):
        found = curve_of(drawn(256, 256), PLAIN.replace(d=d))
        assert (found.d, found.K) == (d, 256)
        assert 1.6 / d < found.slope <= 2 / d


def test_the_slope_keeps_between_nothing_and_theory():
    words = drawn(200, 4)  # 256 codewords hold them all, 32 do not
    matrix = words[torch.randint(200, (2048,), generator=torch.Generator().manual_seed(1))]
    few = curve_of(matrix)
    assert few.slope == 2 / 4
    assert 0 < few.error < 0.05
    alone = curve_of(drawn(4, 16))  # 12 subvectors to learn from: no size can use more than 6
    assert alone.slope == 0
    assert alone.error > 0.05


def test_errors_are_of_subvectors_that_were_not_learned_from():
    """225 subvectors to learn from: 112 codewords are as good as exact for half of these."""
    found = curve_of(drawn(300, 8), PLAIN.replace(d=8))
    assert found.error > 0.42


def test_a_weight_of_zeros_costs_nothing():
    found = curve_of(torch.zeros(64, 16))
    assert found.error == 1e-9
    assert math.isfinite(found.at(4096))


def test_row_scales_take_the_size_of_rows_away():
    matrix, spec = drawn(128, 64), PLAIN.replace(row_scale=True)
    sizes = torch.linspace(0.01, 10, 128)[:, None]
    one, other = curve_of(matrix, spec), curve_of(matrix * sizes, spec)
    assert other.error == pytest.approx(one.error, rel=1e-3)
    assert curve_of(matrix * sizes).error != pytest.approx(one.error, rel=0.05)


def test_the_output_axis_is_that_of_the_transpose():
    matrix = drawn(96, 64) * torch.linspace(0.1, 2, 64)
    turned = curve_of(matrix, PLAIN.replace(orientation="output"))
    assert turned == curve_of(matrix.T.contiguous())
    # There are row scales along the input axis only: a sample of columns has none.
    scaled = PLAIN.replace(orientation="output", row_scale=True)
    assert curve_of(matrix, scaled) == turned


def test_the_seed_and_the_name_draw_the_sample():
    matrix = drawn(2048, 64)
    first = curve_of(matrix)
    assert curve_of(matrix) == first
    others = [
        curve_of(matrix, name="v"), curve_of(matrix, PLAIN.replace(seed=1))
    ]  # fmt: skip
    for other in others:
        assert other != first
        assert other.error == pytest.approx(first.error, rel=0.05)


@pytest.mark.parametrize(
    ("shape", "points"), [((8, 2), 8), ((8, 4), 8), ((8, 11), 16), ((4096, 64), 8192), ((1, 4), 1)]
)
def test_the_sample_holds_whole_subvectors_once(shape, points):
    matrix = torch.arange(1.0, 1 + shape[0] * shape[1]).view(shape)
    p = partition_of(matrix, PLAIN)
    found = predict._sample(matrix, p, PLAIN, torch.Generator().manual_seed(0))
    assert found.shape == (1, 4, points)
    found = found[0].T
    assert len(found.unique(dim=0)) == points
    assert not torch.equal(found, found.sort(dim=0).values) or points == 1  # shuffled
    rows, columns = ((found[:, 0] - 1).div(shape[1], rounding_mode="floor"), found[:, 0] - 1)
    assert (columns - rows * shape[1]).remainder(4).eq(0).all()
    steps = found.diff(dim=1)
    assert steps[:, : shape[1] - 1].eq(1).all()  # neighbours in a row
    if shape[1] < 4:
        assert found[:, shape[1] :].eq(0).all()  # a row that is shorter is padded
    if points == predict.SAMPLE:
        assert len(rows.unique()) == 1024
        assert len(columns.remainder(64).unique()) == 8
