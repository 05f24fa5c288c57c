"""kernels.columns.reorder(): torch's own indexing, bit for bit, with and without gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpq_core.kernels.cpu.columns import reorder


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(1, 40),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_it_is_indexing(leading, cols, dtype):
    x = torch.randn(*leading, cols).to(dtype)
    order = torch.randperm(cols)
    found = reorder(x, order)
    assert found.dtype == dtype
    assert torch.equal(found, x[..., order])


def test_any_memory_layout_and_number_of_threads():
    x, order = torch.randn(600, 1000).T, torch.randperm(600)  # more than one thread would pay for
    assert torch.equal(reorder(x, order), x[:, order])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(reorder(x, order), x[:, order])
    torch.set_num_threads(before)


@pytest.mark.parametrize("wanted", [True, False])
def test_gradients_come_back_in_place(wanted):
    x = torch.randn(5, 8, requires_grad=True)
    order = torch.randperm(8)
    with torch.set_grad_enabled(wanted):
        y = reorder(x, order)
    assert y.requires_grad is wanted
    if wanted:
        (y * torch.arange(8.0)).sum().backward()
        assert torch.equal(x.grad, torch.arange(8.0)[order.argsort()].expand(5, 8))
