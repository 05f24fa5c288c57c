"""The pruned nearest-centre search against plain comparison with every centre."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core import kernels
from dpq_core.kernels.cpu import boxes
from dpq_core.kernels.cpu.nearest import MIN_CENTRES, Nearest, nearest

pytestmark = pytest.mark.portable


def heavy(n: int, d: int, seed: int = 0) -> Tensor:
    """Vectors with tails: a few far away, most crowded."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(n, 1, generator=generator).exp()
    return torch.randn(n, d, generator=generator) * scale


def reference(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    squared = torch.cdist(points.double(), centres.double()).square()
    best = squared.min(dim=1)
    return best.indices, best.values


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("n", "N"), [(3001, 1031), (600, MIN_CENTRES), (100, 7), (5, 900)])
def test_finds_the_nearest(n: int, N: int, d: int) -> None:
    points, centres = heavy(n, d), heavy(N, d, seed=1)
    index, squared = nearest(points, centres)
    expected, distances = reference(points, centres)
    assert index.dtype == torch.int64
    assert (index == expected).double().mean() > 0.999  # apart from ties within rounding
    torch.testing.assert_close(squared.double(), distances, rtol=1e-5, atol=1e-6)
    own = (points - centres[index]).square().sum(1)
    torch.testing.assert_close(squared, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("good", [True, False])
def test_guess_changes_nothing_but_the_time(good: bool) -> None:
    points, centres = heavy(2000, 4), heavy(800, 4, seed=1)
    search = Nearest(points)
    cold = search(centres)
    guess = cold[0] if good else torch.arange(2000) % 800
    warm = search(centres, guess)
    assert torch.equal(cold[0], warm[0])
    torch.testing.assert_close(cold[1], warm[1], rtol=1e-6, atol=0)
    assert torch.equal(search(centres)[0], cold[0])  # and leaves nothing behind


def test_clustered_centres_far_from_all_points() -> None:
    """Boxes that do not touch: the bound is never zero."""
    points, centres = heavy(1500, 3), heavy(700, 3, seed=2) + 50
    assert torch.equal(nearest(points, centres)[0], reference(points, centres)[0])


def test_equal_vectors() -> None:
    points = torch.zeros(1000, 4)
    index, squared = nearest(points, torch.zeros(600, 4))
    assert bool((squared == 0).all())
    assert int(index.min()) >= 0
    assert int(index.max()) < 600


def test_boxes_agree_with_the_plain_kernel() -> None:
    points, centres = heavy(4000, 4), heavy(2000, 4, seed=3)
    plain = kernels.assign(points.T[None].contiguous(), centres[None])[0][0]
    assert torch.equal(nearest(points, centres)[0].int(), plain)


def test_search_prunes() -> None:
    """Fewer comparisons than points times centres, or the boxes are for nothing."""
    points, centres = heavy(4000, 2).numpy(), heavy(2000, 2, seed=3).numpy()
    points = points[boxes.spatial_order(points, boxes.POINTS)]
    centres = centres[boxes.spatial_order(centres, boxes.CENTRES)]
    low, high = boxes.bounds(points, boxes.POINTS)
    c_low, c_high = boxes.bounds(centres, boxes.CENTRES)
    gap = np.maximum(
        np.maximum(c_low[:, None] - high[:, :, None], low[:, :, None] - c_high[:, None]), 0
    )
    radius = np.sqrt(reference(torch.from_numpy(points), torch.from_numpy(centres))[1].numpy())
    worst = np.maximum.reduceat(radius, np.arange(0, 4000, boxes.POINTS))
    assert (np.sqrt((gap**2).sum(0)) <= worst[:, None]).mean() < 0.15


def test_same_result_on_any_number_of_threads(restore_threads: None) -> None:
    points, centres = heavy(20_000, 3), heavy(1000, 3, seed=4)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(nearest(points, centres))
    for index, squared in results[1:]:
        assert torch.equal(index, results[0][0])
        assert torch.equal(squared, results[0][1])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), d=st.integers(1, 4), run=st.integers(1, 40), seed=st.integers(0, 99))
def test_spatial_order_halves_at_multiples_of_the_run(n: int, d: int, run: int, seed: int) -> None:
    points = np.round(heavy(n, d, seed).numpy(), 1)  # with ties
    order = boxes.spatial_order(points, run)
    assert sorted(order) == list(range(n))
    if n > run:
        middle = -(-n // run) // 2 * run
        left, right = points[order[:middle]], points[order[middle:]]
        axis = int(np.argmax(points.max(0) - points.min(0)))
        assert left[:, axis].max() <= right[:, axis].min()
    low, high = boxes.bounds(points[order], run)
    for start in range(0, n, run):
        part = points[order[start : start + run]]
        assert (part.min(0) == low[:, start // run]).all()
        assert (part.max(0) == high[:, start // run]).all()
