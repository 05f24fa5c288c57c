"""Pools: the greedy scan against a plain reference, k-means against its bounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.kernels.cpu.nearest import Nearest
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.methods.pool import selection as pool_module
from dpq_core.methods.pool.selection import Clusters, greedy, merged, wkmeans
from dpq_core.spec import KMeansSpec
from dpq_core.tensor.packing import pack, unpack

pytestmark = pytest.mark.portable


def codewords(C: int = 6, K: int = 32, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Heavy-tailed codebooks [C, K, d] and a skewed usage [C, K] with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    books = torch.randn(C, K, d, generator=generator)
    books *= torch.randn(C, K, 1, generator=generator).exp()
    usage = (torch.randn(C, K, generator=generator).exp() * 10).long()
    usage[:, ::7] = 0
    return books, usage


def trained(rows: int, cols: int, d: int) -> tuple[Tensor, Tensor]:
    """Codebooks of heavy-tailed weights with row and column scales, and their usage."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, cols, generator=generator).pow(3)
    weight *= (0.35 * torch.randn(1, cols, generator=generator)).exp()
    points = weight.T.contiguous().view(cols // d, d, rows)
    spec = KMeansSpec(iterations=4, tail=2)
    result = kmeans(points, K=64, spec=spec, seed=0)
    usage = torch.stack([torch.bincount(codes, minlength=64) for codes in result.codes])
    return result.codebooks, usage


def added_error(books: Tensor, usage: Tensor, pool: Tensor, index: Tensor) -> float:
    """sum usage |c - pool[index]|^2."""
    wrong = (books - pool[index.long()]).double().square().sum(2)
    return float((wrong * usage).sum())


def naive_greedy(books: Tensor, usage: Tensor, size: int, tau: float) -> Tensor:
    """The scan of docs/algorithms.md#pool, one codeword after the other."""
    vectors, weight = books.view(-1, books.shape[2]), usage.view(-1).double()
    norms = vectors.double().square().sum(1)
    radius = tau * math.sqrt(float((weight * norms).sum() / weight.sum()))
    order = sorted(range(len(vectors)), key=lambda n: (-float(weight[n]), -float(norms[n])))
    accepted: list[int] = []
    for n in order:
        distances = [float((vectors[n] - vectors[p]).norm()) for p in accepted]
        if min(distances, default=math.inf) > radius:
            accepted.append(n)
        if len(accepted) == size:
            break
    rest = [n for n in order if n not in accepted]
    chosen = {*accepted, *rest[: size - len(accepted)]}
    return vectors[[n for n in order if n in chosen]]


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("scan", [1024, 16])
@pytest.mark.parametrize("size", [1, 40, 150, 192])
@pytest.mark.parametrize("tau", [0.0, 0.05, 0.3, 1.0])
def test_greedy_is_the_plain_scan(
    tau: float, size: int, scan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SCAN", scan)
    books, usage = codewords()
    pool, index = greedy(books, usage, size, tau)
    assert torch.equal(pool, naive_greedy(books, usage, size, tau))
    expected = torch.cdist(books.view(-1, 4).double(), pool.double()).argmin(1)
    assert torch.equal(index.view(-1).long(), expected)
    assert index.dtype == torch.int32


def test_greedy_prefers_usage_then_norm() -> None:
    books = torch.tensor([[[1.0], [5.0], [-9.0], [3.0]]])
    pool, index = greedy(books, torch.tensor([[7, 2, 2, 0]]), 3, 0.05)
    assert pool.flatten().tolist() == [1.0, -9.0, 5.0]
    assert index.tolist() == [[0, 2, 1, 0]]


def test_greedy_without_any_usage() -> None:
    books, usage = codewords()
    pool, _ = greedy(books, torch.zeros_like(usage), 10, 0.1)
    assert torch.equal(pool[0], books.view(-1, 4)[books.view(-1, 4).norm(dim=1).argmax()])


@pytest.mark.parametrize("d", [2, 4, 8])
def test_wkmeans_adds_much_less_error_than_greedy(d: int) -> None:
    """docs/algorithms.md#preset-paper, test 5: heavy-tailed weights, equal N."""
    books, usage = trained(256, 48 * d, d)
    size = round(256 * 48 * d / (16 * d * d)) + 50
    errors = [added_error(books, usage, *greedy(books, usage, size, tau)) for tau in (0.05, 0.2)]
    error = added_error(books, usage, *wkmeans(books, usage, size))
    assert error < 0.8 * min(errors)


def test_merging_beats_sampled_starts() -> None:
    """The reason for it: k-means from codewords sampled by w |c - mean|^2.

    See docs/algorithms.md#pool-wkmeans.
    """
    books, usage = trained(512, 192, 4)
    vectors, weight = books.view(-1, 4), usage.view(-1).double()
    generator = torch.Generator().manual_seed(0)
    chance = weight * (vectors - vectors.mean(0)).square().sum(1)
    start = vectors[torch.multinomial(chance, 500, generator=generator)]
    index = torch.cdist(vectors, start).argmin(1)
    clusters = Clusters(Nearest(vectors), start, index)
    costs = [clusters.iterate(vectors, weight[:, None].expand_as(vectors)) for _ in range(15)]
    assert costs == sorted(costs, reverse=True)
    assert added_error(books, usage, *wkmeans(books, usage, 500)) < 0.9 * costs[-1]


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 192), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_pool_has_the_size_asked_for_and_index_the_nearest(size: int, d: int, seed: int) -> None:
    books, usage = codewords(d=d, seed=seed)
    for pool, index in (wkmeans(books, usage, size), greedy(books, usage, size, 0.05)):
        assert pool.shape == (size, d)
        assert index.shape == (6, 32)
        distances = torch.cdist(books.view(-1, d).double(), pool.double())
        chosen = distances.gather(1, index.view(-1, 1).long())[:, 0]
        torch.testing.assert_close(chosen, distances.min(1).values, rtol=1e-4, atol=1e-5)


def test_every_codeword_its_own_vector_adds_no_error() -> None:
    books, usage = codewords()
    for pool, index in (wkmeans(books, usage, 192), greedy(books, usage, 192, 0.0)):
        assert torch.equal(pool[index.long()], books)


def test_enough_vectors_for_all_that_is_used_add_no_error() -> None:
    books, usage = codewords()
    used = int((usage > 0).sum())
    assert added_error(books, usage, *wkmeans(books, usage, used)) == 0


def test_one_vector_is_the_weighted_mean() -> None:
    books, usage = codewords()
    pool, index = wkmeans(books, usage, 1)
    mean = (books * usage[..., None]).view(-1, 4).sum(0) / usage.sum()
    torch.testing.assert_close(pool[0], mean)
    assert int(index.max()) == 0


def test_repeated_vectors_are_joined_first() -> None:
    """20 distinct codewords, each three times: 20 pool vectors hold them all."""
    distinct, _ = codewords(C=1, K=20)
    books = distinct.repeat(3, 1, 1)
    pool, index = wkmeans(books, torch.full((3, 20), 5), 20)
    torch.testing.assert_close(pool[index.long()], books)


@pytest.mark.parametrize("cell", [2, 16, 128])
@pytest.mark.parametrize("size", [3, 50, 499])
def test_merging_keeps_the_weighted_mean(
    size: int, cell: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CELL", cell)
    books, _ = codewords(C=10, K=50)
    vectors = books.view(-1, 4)
    weight = torch.rand(500, generator=torch.Generator().manual_seed(3)).double() + 0.1
    means, index = merged(vectors, weight, size)
    assert means.shape == (size, 4)
    for n in range(size):
        of = (index == n).nonzero()[:, 0]
        assert len(of) > 0
        mean = (weight[of, None] * vectors[of]).sum(0) / weight[of].sum()
        torch.testing.assert_close(means[n].double(), mean, rtol=1e-4, atol=1e-4)


def test_merging_in_one_cell_is_the_plain_pairwise_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MERGE_PASSES", 1)
    books, usage = codewords(C=2, K=40)
    x, w = books.view(-1, 4).double(), usage.view(-1).double() + 1
    means, _ = merged(books.view(-1, 4), w, 15)
    while len(x) > 15:
        cost = torch.cdist(x, x).square() * (w[:, None] * w) / (w[:, None] + w)
        cost.fill_diagonal_(math.inf)
        i, j = divmod(int(cost.argmin()), len(x))
        x[i] = (w[i] * x[i] + w[j] * x[j]) / (w[i] + w[j])
        w[i] += w[j]
        keep = torch.arange(len(x)) != j
        x, w = x[keep], w[keep]
    distances = torch.cdist(x, means.double())
    assert float(distances.min(1).values.max()) < 1e-4


def test_empty_pool_vectors_go_where_the_error_is() -> None:
    vectors = torch.tensor([[0.0], [0.1], [10.0], [20.0]])
    clusters = Clusters(
        Nearest(vectors), torch.tensor([[0.0], [500.0], [600.0]]), torch.zeros(4, dtype=torch.int64)
    )
    ones = torch.ones(4, 1, dtype=torch.float64)
    assert clusters.iterate(vectors, ones) == pytest.approx(500.01)
    assert clusters.iterate(vectors, ones) == pytest.approx(0.1**2 / 4 + 4.95**2, abs=0.01)
    assert clusters.iterate(vectors, ones) == pytest.approx(0.005)


def test_vectors_stay_where_a_move_would_cost_more() -> None:
    """The second coordinate is padding: nearest in all coordinates is not nearest."""
    vectors = torch.tensor([[0.0, 10.0]])
    pool = torch.tensor([[0.0, 0.0], [3.0, 10.0]])
    clusters = Clusters(Nearest(vectors), pool, torch.zeros(1, dtype=torch.int64))
    assert clusters.iterate(vectors, torch.tensor([[1.0, 0.0]], dtype=torch.float64)) == 0
    assert clusters.index.tolist() == [0]
    assert torch.equal(clusters.pool, pool)


def test_perfectly_served_vectors_stay() -> None:
    vectors = torch.tensor([[1.0], [1.0], [2.0]])
    clusters = Clusters(
        Nearest(vectors), torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([0, 0, 1])
    )
    assert clusters.iterate(vectors, torch.ones(3, 1, dtype=torch.float64)) == 0
    assert clusters.index.tolist() == [0, 0, 1]
    assert clusters.pool.flatten().tolist() == [1.0, 2.0, 9.0]


@pytest.mark.parametrize("scan", [1024, 3])
def test_greedy_takes_equal_codewords_once(scan: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "SCAN", scan)
    books = torch.tensor([[[4.0], [4.0], [3.0], [4.0], [3.0], [2.0]]])
    pool, _ = greedy(books, torch.ones(1, 6), 3, 0.0)
    assert pool.flatten().tolist() == [4.0, 3.0, 2.0]


@pytest.mark.slow
def test_same_pool_on_any_number_of_threads(restore_threads: None) -> None:
    books, usage = codewords(C=60, K=64)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append((wkmeans(books, usage, 900), greedy(books, usage, 900, 0.1)))
    for methods in results[1:]:
        for got, expected in zip(methods, results[0], strict=True):
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])


def test_index_beyond_int16_survives_packing() -> None:
    """docs/algorithms.md#preset-paper, test 10: 65,536 vectors need unsigned 16-bit entries."""
    index = torch.tensor([[0, 32_767, 32_768, 40_000, 65_535]], dtype=torch.int32)
    assert torch.equal(unpack(pack(index, 16), 16, 5), index)


@pytest.mark.parametrize("build", [functools.partial(greedy, tau=0.05), wkmeans])
def test_impossible_pools_are_refused(build: Callable[[Tensor, Tensor, int], object]) -> None:
    books, usage = codewords()
    with pytest.raises(SpecError, match="for 192 codewords holds 1 to 192 vectors, not 193"):
        build(books, usage, 193)
    with pytest.raises(SpecError, match="holds 1 to 192 vectors, not 0"):
        build(books, usage, 0)
    large = torch.zeros(257, 256, 1)
    with pytest.raises(SpecError, match="holds 1 to 65,536 vectors, not 65,537"):
        build(large, torch.ones(257, 256), 65_537)
    with pytest.raises(SpecError, match=r"not \[6, 32, 4\] and \[6, 31\]"):
        build(books, usage[:, 1:], 5)
    with pytest.raises(SpecError, match="finite"):
        build(books / 0, usage, 5)
    with pytest.raises(SpecError, match="not negative"):
        build(books, -usage, 5)


@pytest.mark.parametrize("tau", [-0.1, math.nan])
def test_negative_tau_is_refused(tau: float) -> None:
    with pytest.raises(SpecError, match="tau must be at least 0"):
        greedy(*codewords(), 5, tau)
