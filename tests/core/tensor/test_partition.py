"""Partition and packing: exactly invertible, sizes as published."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import conv_shapes, matrix_shapes, specs

from dpq_core.errors import SpecError
from dpq_core.spec import QuantSpec
from dpq_core.tensor.packing import pack, unpack
from dpq_core.tensor.partition import Layout, Partition


@given(matrix_shapes, specs)
def test_matrix_round_trip(shape, spec):
    check_round_trip(shape, Layout.LINEAR, spec)


@given(conv_shapes, specs)
def test_conv_round_trip(shape, spec):
    check_round_trip(shape, Layout.CONV, spec)


def check_round_trip(shape, layout, spec):
    weight = torch.randn(shape)
    p = Partition.of(shape, layout, spec)
    subvectors = p.to_subvectors(p.to_matrix(weight))
    assert subvectors.shape == (p.groups, p.d, p.points)
    assert torch.equal(p.from_matrix(p.from_subvectors(subvectors)), weight)
    assert (
        (p.codebooks - 1) * p.groups_per_codebook < p.groups <= p.codebooks * p.groups_per_codebook
    )
    assert 1 << p.code_bits >= p.K


def test_subvectors_are_consecutive_inputs_of_one_row():
    weight = torch.arange(24.0).view(2, 12)
    p = Partition.of((2, 12), Layout.LINEAR, QuantSpec(d=4))
    assert p.to_subvectors(weight)[1, :, 1].tolist() == [16, 17, 18, 19]


def test_channel_layout_puts_input_channels_last():
    weight = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    p = Partition.of((2, 3, 2, 2), Layout.CONV, QuantSpec(d=3, conv_layout="channel"))
    assert p.to_matrix(weight)[0, :3].tolist() == [0, 4, 8]


def test_padding_is_zero_and_at_the_end():
    p = Partition.of((5, 10), Layout.LINEAR, QuantSpec(d=4))
    assert (p.groups, p.pad) == (3, 2)
    assert p.to_subvectors(torch.ones(5, 10))[-1, 2:].abs().sum() == 0


@pytest.mark.parametrize(
    ("scope", "codebooks", "sharing"), [("tensor", 1, 288), ("subspace", 288, 1), (7, 7, 42)]
)
def test_scope_decides_who_shares_a_codebook(scope, codebooks, sharing):
    p = Partition.of((6912, 1152), Layout.LINEAR, QuantSpec(d=4, scope=scope))
    assert (p.codebooks, p.groups_per_codebook) == (codebooks, sharing)


def test_adaln_codes_take_the_bits_of_the_supplement():
    p = Partition.of((6912, 1152), Layout.LINEAR, QuantSpec.preset(2, scope="subspace"))
    assert 8 * p.groups * p.group_bytes == 15_925_248


@pytest.mark.parametrize("shape", [(512, 512), (4096, 4096), (11_008, 4096), (1024, 384)])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_auto_scope_keeps_codebooks_within_their_share(shape, bits):
    spec = QuantSpec.preset(bits)
    p = Partition.of(shape, Layout.LINEAR, spec)
    codebook_bytes = 2 * p.codebooks * p.K * p.d
    assert p.codebooks == 1 or codebook_bytes <= spec.codebook_share * p.groups * p.group_bytes


def test_more_codebooks_than_groups_is_an_error():
    with pytest.raises(SpecError, match="only 3 groups"):
        Partition.of((5, 10), Layout.LINEAR, QuantSpec(d=4, scope=4))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((3,), Layout.LINEAR), ((3, 0), Layout.LINEAR), ((3, 4, 5), Layout.LINEAR), ((3, 4), "conv")],
)
def test_shapes_that_are_no_matrix_are_refused(shape, layout):
    with pytest.raises(SpecError, match="cannot be viewed"):
        Partition.of(shape, Layout(layout), QuantSpec())


@given(st.integers(1, 16), st.integers(1, 300), st.integers(1, 4), st.integers(0, 2**32))
def test_pack_round_trip(bits, points, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (groups, points), generator=generator, dtype=torch.int32)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (groups, -(-points * bits // 8))
    assert torch.equal(unpack(packed, bits, points), codes)


def test_packing_is_little_endian():
    assert pack(torch.tensor([[1, 2, 3]]), 4).tolist() == [[0x21, 0x03]]
    assert pack(torch.tensor([[0x1234]]), 16).tolist() == [[0x34, 0x12]]
    assert pack(torch.tensor([[1, 0, 1, 1]]), 1).tolist() == [[0b1101]]


def test_long_runs_are_packed_in_blocks():
    codes = torch.randint(1 << 5, (3, 1 << 20), dtype=torch.int32)
    assert torch.equal(unpack(pack(codes, 5), 5, 1 << 20), codes)
