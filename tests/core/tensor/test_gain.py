"""Gains of rows: what brings a quantized row back to its length, and the error that is left."""

from __future__ import annotations

import pytest
import torch

from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis.gain import MAX_GAIN, RowProducts, gain_of
from dpq_core.tensor.partition import Layout, Partition


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_gain_is_the_energy_over_what_lies_along_the_row():
    energy = torch.tensor([8.0, 8.0, 8.0, 8.0, 8.0, 0.0, 0.0])
    along = torch.tensor([4.0, 16.0, 2.001, 2.0, -8.0, 0.0, 1.0])
    found = gain_of(energy, along)
    # Beyond fourfold, against the row, of nothing: such rows are left alone.
    torch.testing.assert_close(found, torch.tensor([2, 0.5, 8 / 2.001, 1, 1, 1, 1]))
    assert MAX_GAIN == 4


def rows_of(p, points, codes, books, **stored):
    return RowProducts.of(points, codes, books, p, stored)


def problem(orientation, *, group_scale, shape=(10, 11), stages=2):
    """A core of a shape that d does not divide, its code, and both as dense matrices."""
    spec = QuantSpec(d=4, K=8, scope="subspace", orientation=orientation, stages=stages)
    p = Partition.of(shape, Layout.LINEAR, spec)
    core, books = drawn(*shape), drawn(stages * p.codebooks, 8, 4, seed=1)
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(8, (stages * p.groups, p.points), generator=generator, dtype=torch.int32)
    tied = torch.arange(p.groups) // p.groups_per_codebook
    words = sum(
        books[s * p.codebooks + tied][
            torch.arange(p.groups)[:, None], codes[s * p.groups : (s + 1) * p.groups].long()
        ]
        for s in range(stages)
    )
    points = p.to_subvectors(core)
    decoded = p.from_subvectors(words.mT.contiguous())
    stored = {"group_scale": drawn(p.groups, seed=3).abs().half() + 0.5} if group_scale else {}
    if group_scale:
        scale = stored["group_scale"].float().repeat_interleave(4)[: shape[1]]
        core, decoded = core * scale, decoded * scale
    return rows_of(p, points, codes, books, **stored), core.double(), decoded.double()


CASES = [("input", False), ("input", True), ("output", False)]


@pytest.mark.parametrize(("orientation", "group_scale"), CASES)
def test_products_are_those_of_the_dense_rows_and_the_pad_counts_nothing(orientation, group_scale):
    rows, core, decoded = problem(orientation, group_scale=group_scale)
    for found, a, b in (
        (rows.energy, core, core), (rows.along, core, decoded), (rows.decoded, decoded, decoded)
    ):  # fmt: skip
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, (a * b).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows.gain(), gain_of(rows.energy, rows.along))


@pytest.mark.parametrize(("orientation", "group_scale"), CASES)
def test_the_relative_error_is_that_of_the_dense_weight(orientation, group_scale):
    rows, core, decoded = problem(orientation, group_scale=group_scale)
    plain = (core - decoded).square().sum() / core.square().sum()
    assert rows.relative_error(None, None) == pytest.approx(float(plain), rel=1e-4)
    before = drawn(10, seed=4).abs() + 0.3
    before[3] = 0  # a row of zeros is divided by 1
    old = torch.where(before > 0, before, torch.ones(10)).double()
    after = old * torch.linspace(0.5, 2, 10, dtype=torch.float64)
    weight, stored = core * old[:, None], decoded * after[:, None]
    wanted = (weight - stored).square().sum() / weight.square().sum()
    found = rows.relative_error(before, after.float())
    assert found == pytest.approx(float(wanted), rel=1e-4)


def test_nothing_lost_is_zero_and_nothing_there_is_too():
    one = torch.ones(2, dtype=torch.float64)
    # Rounding may leave less than nothing; an error is never negative.
    assert (
        RowProducts(energy=one, along=one * (1 + 1e-9), decoded=one).relative_error(None, None) == 0
    )
    assert (
        RowProducts(energy=0 * one, along=0 * one, decoded=0 * one).relative_error(None, None) == 0
    )
    assert (
        RowProducts(energy=4 * one, along=2 * one, decoded=one).relative_error(None, None) == 0.25
    )
