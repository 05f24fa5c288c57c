"""The order of the columns, found in windows: still every column once, never across windows."""

from __future__ import annotations

import pytest
import torch

from dpq_core.spec import QuantSpec
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import permutation_of


@pytest.mark.parametrize("cols", [7, 48, 50, 130])
def test_windows_keep_their_columns(cols, monkeypatch):
    monkeypatch.setattr(basis, "WINDOW", 49)
    monkeypatch.setattr(basis, "ROWS", 20)
    spec = QuantSpec(d=4, K=16, scope="tensor", permute=True)
    matrix = torch.randn(33, cols, generator=torch.Generator().manual_seed(0))
    p = Partition.of((33, cols), Layout.LINEAR, spec)
    stored = basis.choose(matrix, p, spec, seed=1)["permutation"]
    order = permutation_of(stored, cols)
    assert torch.equal(order.sort().values, torch.arange(cols))
    for first in range(0, cols, 48):
        window = order[first : first + 48]
        assert window.min() >= first
        assert window.max() < first + 48


def test_correlated_columns_meet():
    """Columns i and i + 32 are copies of each other: each pair ends in one group."""
    half = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    matrix = torch.cat([half, half + 0.01 * torch.randn(500, 32)], dim=1)
    spec = QuantSpec(d=2, K=16, scope="subspace", permute=True)
    p = Partition.of((500, 64), Layout.LINEAR, spec)
    order = permutation_of(basis.choose(matrix, p, spec, seed=1)["permutation"], 64)
    together = sum((a - b).abs() == 32 for a, b in order.view(-1, 2))
    assert together > 25
