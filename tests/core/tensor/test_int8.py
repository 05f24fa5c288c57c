"""Symmetric int8 codebooks: half a step, at the most."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpq_core.errors import SpecError
from dpq_core.tensor.int8 import to_int8


@given(exponent=st.floats(-6, 6), seed=st.integers(0, 1000))
def test_no_value_moves_by_more_than_half_a_scale(exponent: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 16, 4, generator=generator) * 10**exponent
    q, scale = to_int8(values)
    assert q.dtype == torch.int8
    assert scale.dtype == torch.float16
    assert scale.shape == (3,)
    assert int(q.min()) >= -127
    error = (values.double() - q.double() * scale.double()[:, None, None]).abs()
    assert bool((error <= 0.5000001 * scale.double()[:, None, None]).all())
    # The scale is the finest that covers the largest value, up to the spacing of float16.
    finest = values.double().abs().amax((1, 2)) / 127
    assert bool((scale.double() >= finest).all())
    assert bool((scale.double() <= finest * (1 + 2**-10) + 2**-24).all())


def test_literals() -> None:
    q, scale = to_int8(torch.tensor([[[127.0, -127.0], [0.4, 63.6]]]))
    assert scale.tolist() == [1.0]
    assert q.tolist() == [[[127, -127], [0, 64]]]


def test_each_codebook_has_its_own_scale_and_a_pool_has_one() -> None:
    values = torch.tensor([[[127.0]], [[254.0]], [[0.0]]])
    q, scale = to_int8(values)
    assert scale.tolist() == [1.0, 2.0, 0.0]
    assert q.flatten().tolist() == [127, 127, 0]
    assert to_int8(values[:, 0])[1].item() == 2.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 65_520.0 * 127])
def test_what_has_no_scale_is_refused(value: float) -> None:
    with pytest.raises(SpecError, match="use codebook_dtype=float32"):
        to_int8(torch.full((1, 2, 2), value))
