"""Nearest codeword under a metric: against all codewords tried one by one, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core.kernels.cpu import metric as kernel

pytestmark = pytest.mark.portable

sizes = st.tuples(st.integers(1, 12), st.integers(1, 70), st.integers(1, 150))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def costs(targets: Tensor, book: Tensor, metric: Tensor) -> Tensor:
    """(t - c)^T M (t - c) of all pairs, float64 [N, K]."""
    wrong = targets.T.double()[:, None] - book.double()
    return torch.einsum("nki,ij,nkj->nk", wrong, metric.double(), wrong)


def assert_lowest(all_costs: Tensor, codes: Tensor) -> None:
    chosen = all_costs.gather(-1, codes.long()[..., None])[..., 0]
    slack = 1e-5 * (1 + all_costs.amax(-1))  # float32 scores
    assert codes.dtype == torch.int32
    assert bool((chosen <= all_costs.amin(-1) + slack).all())


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(0, 12), st.integers(0, 99))
def test_no_codeword_is_nearer(sizes: tuple[int, int, int], rank: int, seed: int) -> None:
    d, K, N = sizes
    targets, book = normal(d, N, seed=seed) + 3, normal(K, d, seed=seed + 1) + 3
    root = normal(d, rank, seed=seed + 2)
    metric = root @ root.T  # singular below rank d
    assert_lowest(costs(targets, book, metric), kernel.nearest(targets, book, metric))


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(1, 3), st.integers(0, 99))
def test_no_codeword_is_nearer_with_weights(sizes: tuple[int, int, int], B: int, seed: int) -> None:
    d, K, N = sizes
    targets, books = normal(B, d, N, seed=seed), normal(B, K, d, seed=seed + 1)
    weights = normal(B, d, N, seed=seed + 2).clamp_min(0)
    wrong = targets.movedim(1, 2)[:, :, None].double() - books[:, None].double()
    expected = (wrong.square() * weights.movedim(1, 2)[:, :, None]).sum(3)
    assert_lowest(expected, kernel.weighted_nearest(targets, books, weights))


def test_of_equal_codewords_the_first_is_taken() -> None:
    book = normal(4, 3, seed=0).repeat(3, 1)
    codes = kernel.nearest(book.T.contiguous(), book, torch.eye(3))
    assert codes.tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("d", [1, 4, 9])
def test_torch_chooses_as_well(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "TILE_FLOATS", 1000)  # several tiles of points and of codewords
    points, words, offsets = (
        normal(2, d, 90, seed=0),
        normal(2, 70, d, seed=1),
        normal(2, 70, seed=2),
    )
    scores = offsets[:, None] - points.movedim(1, 2) @ words.movedim(1, 2)
    codes = kernel._by_torch(points, words, offsets)
    assert torch.equal(codes, scores.argmin(2).int())
    assert torch.equal(codes, kernel.lowest(points, words, offsets))


def test_many_codewords_and_points() -> None:
    book, targets = normal(5000, 8, seed=0), normal(8, 5000, seed=1)
    codes = kernel.nearest(targets, book, torch.eye(8))
    assert_lowest(torch.cdist(targets.T, book).square().double(), codes)
    planted = kernel.nearest(book.T.contiguous(), book, torch.eye(8))
    assert torch.equal(planted, torch.arange(5000, dtype=torch.int32))
