"""Refinement of pools: monotone, exact about its own state, at home with padding and weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from groupings import grouped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core import kernels
from dpq_core.kernels import torch_path
from dpq_core.kernels.cpu import nearest_and_sums as cpu
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.methods.pool import refine as pool_refine
from dpq_core.methods.pool.refine import RefinedPool, refine
from dpq_core.methods.pool.selection import greedy, wkmeans
from dpq_core.spec import KMeansSpec

pytestmark = pytest.mark.portable


def heavy(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).pow(3)


def start(G: int, K: int, d: int, N: int, sharing: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A pool of random vectors and a random index map."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(N, d, generator=generator)
    return pool, torch.randint(N, (-(-G // sharing), K), generator=generator)


def error(
    points: Tensor, result: RefinedPool, *, sharing: int, pad: int, weights: Tensor | None
) -> float:
    """The objective, plainly: decode, and leave the pad out."""
    G, d, P = points.shape
    books = result.pool[result.index.long()]  # [C, K, d]
    weight = torch.ones(G, P) if weights is None else weights.expand(G, P)
    total = 0.0
    for g in range(G):
        used = d - pad if g == G - 1 else d
        wrong = points[g, :used].T - books[g // sharing][result.codes[g].long(), :used]
        total += float((wrong.double().square().sum(1) * weight[g]).sum())
    return total / float(weight.sum())


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    G=st.integers(1, 7),
    d=st.integers(1, 5),
    sharing=st.integers(1, 8),
    pad=st.integers(0, 4),
    K=st.integers(2, 12),
    N=st.integers(2, 30),
    weighted=st.sampled_from(["none", "rows", "all"]),
    seed=st.integers(0, 9),
)
def test_error_never_rises_and_is_reported_exactly(
    G: int, d: int, sharing: int, pad: int, K: int, N: int, weighted: str, seed: int
) -> None:
    pad = min(pad, d - 1)
    points = heavy(G, d, 60, seed=seed)
    points[-1, d - pad :] = 0
    shape = {"rows": (1, 60), "all": (G, 60)}.get(weighted)
    weights = None if shape is None else heavy(*shape, seed=seed + 1).abs()
    pool, index = start(G, K, d, N, sharing, seed)
    result = refine(
        points,
        pool,
        index,
        grouping=grouped(points, sharing, pad=pad),
        rounds=5,
        weights=weights,
    )
    objectives = [s.objective for s in result.stats]
    for before, after in itertools.pairwise(objectives):
        assert after <= before * (1 + 1e-6) + 1e-6
    plain = error(points, result, sharing=sharing, pad=pad, weights=weights)
    assert objectives[-1] == pytest.approx(plain, rel=1e-4, abs=1e-5)
    best = kernels.assign(
        points, result.pool[result.index.long()], grouped(points, sharing, pad=pad)
    )[1]
    weight = torch.ones(1, 60) if weights is None else weights
    assert plain == pytest.approx(
        float((best.double() * weight).sum() / weight.expand(G, 60).sum()), rel=1e-4, abs=1e-5
    )


def test_no_rounds_is_one_assignment() -> None:
    points = heavy(4, 4, 50)
    pool, index = start(4, 8, 4, 20)
    result = refine(points, pool, index, rounds=0)
    assert torch.equal(result.pool, pool)
    assert torch.equal(result.index.long(), index)
    assert torch.equal(result.codes, kernels.assign(points, pool[index])[0])
    assert len(result.stats) == 1
    assert result.stats[0].moved == 4 * 50


def test_arguments_are_left_alone() -> None:
    points = heavy(4, 4, 50)
    pool, index = start(4, 8, 4, 20)
    kept = points.clone(), pool.clone(), index.clone()
    refine(points, pool, index)
    for got, expected in zip((points, pool, index), kept, strict=True):
        assert torch.equal(got, expected)


def test_refining_repairs_a_greedy_pool_and_improves_a_good_one() -> None:
    points = heavy(48, 4, 512)
    spec = KMeansSpec(iterations=6, tail=2)
    result = kmeans(points, K=64, spec=spec, seed=0)
    usage = torch.stack([torch.bincount(codes, minlength=64) for codes in result.codes])
    size = 512 * 48 * 4 // (16 * 16)
    stats = {}
    for name, pool in (
        ("greedy", greedy(result.codebooks, usage, size, 0.05)),
        ("wkmeans", wkmeans(result.codebooks, usage, size)),
    ):
        stats[name] = [s.objective for s in refine(points, *pool).stats]
    assert stats["greedy"][-1] < 0.8 * stats["greedy"][0]
    assert stats["wkmeans"][-1] < 0.99 * stats["wkmeans"][0]
    assert stats["wkmeans"][0] < stats["greedy"][-1]


def test_stops_where_a_round_gains_nothing() -> None:
    points = heavy(3, 2, 40)
    result = refine(points, *start(3, 4, 2, 6), rounds=100)
    assert len(result.stats) < 100
    gains = [
        1 - after.objective / before.objective for before, after in itertools.pairwise(result.stats)
    ]
    assert gains[-1] <= pool_refine.MIN_GAIN
    assert all(gain > pool_refine.MIN_GAIN for gain in gains[:-1])


def test_exact_pool_stays() -> None:
    """Subvectors that are pool vectors: error zero, nothing moves."""
    pool, index = start(3, 8, 4, 20)
    choice = torch.randint(8, (3, 100), generator=torch.Generator().manual_seed(1))
    points = pool[index][torch.arange(3)[:, None], choice].movedim(1, 2).contiguous()
    result = refine(points, pool, index)
    assert result.stats[-1].objective < 1e-10
    decoded = result.pool[result.index.long()][torch.arange(3)[:, None], result.codes.long()]
    torch.testing.assert_close(decoded.movedim(1, 2), points)


def test_unused_slots_are_rescued_a_few_at_a_time() -> None:
    """All slots name one vector: 1 of 40 is used, and at most 5 % change per round."""
    points = heavy(1, 2, 400)
    pool, _ = start(1, 40, 2, 30)
    index = torch.zeros(1, 40, dtype=torch.int64)
    empties = [
        refine(points, pool, index, rounds=rounds).stats[-1].empty for rounds in (0, 1, 2, 9)
    ]
    assert empties[0] == 39
    assert 37 <= empties[1] < 39
    assert 35 <= empties[2] <= empties[1]
    assert empties[3] <= 34


def test_rescue_goes_to_the_worst_served() -> None:
    points = torch.zeros(1, 1, 50)
    points[0, 0, 7] = 9.0
    pool, index = torch.tensor([[0.0], [8.0], [50.0]]), torch.zeros(1, 2, dtype=torch.int64)
    result = refine(points, pool, index, rounds=3)
    assert result.stats[-1].objective < 0.01 * result.stats[0].objective
    assert int(result.codes[0, 7]) == 1
    assert result.stats[-1].empty == 0
    weights = torch.ones(1, 50)
    weights[0, 7] = 0  # nobody misses it
    ignored = refine(points, pool, index, rounds=3, weights=weights)
    assert ignored.stats[-1].objective == 0
    assert ignored.stats[-1].empty == 1


def test_heavier_subvectors_are_served_better() -> None:
    points = heavy(6, 2, 200)
    weights = torch.ones(1, 200)
    weights[0, :50] = 30.0
    pool, index = start(6, 8, 2, 12)
    errors = []
    for w in (None, weights):
        result = refine(points, pool, index, rounds=10, weights=w)
        heavy_only = torch.zeros(1, 200)
        heavy_only[0, :50] = 1
        errors.append(error(points, result, sharing=1, pad=0, weights=heavy_only))
    assert errors[1] < 0.95 * errors[0]


def test_pad_pulls_no_pool_vector_to_zero() -> None:
    """Both groups hold (3, 4), but of the last one only the 3 counts."""
    points = torch.tensor([[[3.0], [4.0]], [[3.0], [0.0]]]).expand(2, 2, 20).contiguous()
    pool = torch.tensor([[2.0, 3.0], [-9.0, -9.0]])
    result = refine(points, pool, torch.tensor([[0, 1], [0, 1]]), grouped(points, 1, pad=1))
    assert result.pool[result.index[0, result.codes[0, 0]].long()].tolist() == [3.0, 4.0]
    assert result.stats[-1].objective == 0


def test_tie_shares_the_projected_codebook() -> None:
    points = heavy(5, 2, 80)
    result = refine(points, *start(5, 8, 2, 16, sharing=2), grouped(points, 2))
    assert result.index.shape == (3, 8)
    assert result.stats[-1].objective == pytest.approx(
        error(points, result, sharing=2, pad=0, weights=None), rel=1e-5
    )


def test_torch_path_agrees_with_the_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the same operations, apart from the kernels."""
    points = heavy(5, 4, 120)
    points[-1, 3:] = 0
    pool, index = start(5, 16, 4, 40, sharing=2)
    # Whole numbers: products are exact, and so are the decisions of a round, in any order.
    whole = (8 * points).round(), (8 * pool).round(), index
    exact = [refine(*whole, grouped(points, 2, pad=1), rounds=1)]
    longer = [refine(points, pool, index, grouped(points, 2, pad=1), rounds=4)]
    monkeypatch.setattr(cpu, "CPULloyd", torch_path.TorchLloyd)
    monkeypatch.setattr(cpu, "assign", torch_path.assign)
    exact.append(refine(*whole, grouped(points, 2, pad=1), rounds=1))
    longer.append(refine(points, pool, index, grouped(points, 2, pad=1), rounds=4))
    torch.testing.assert_close(exact[0].pool, exact[1].pool, rtol=1e-5, atol=1e-5)
    assert torch.equal(exact[0].index, exact[1].index)
    # Two codewords of a codebook may be one vector of the pool, and either of them be taken.
    vectors = [
        found.index.repeat_interleave(2, dim=0)[:5].gather(1, found.codes.long()) for found in exact
    ]
    assert torch.equal(*vectors)
    # Between two codewords a point may go to either, and later rounds go on from there.
    errors = [error(points, found, sharing=2, pad=1, weights=None) for found in longer]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


@pytest.mark.slow
def test_same_result_on_any_number_of_threads(restore_threads: None) -> None:
    points = heavy(24, 4, 3000)
    arguments = points, *start(24, 64, 4, 600)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(refine(*arguments, rounds=2))
    for result in results[1:]:
        assert torch.equal(result.pool, results[0].pool)
        assert torch.equal(result.index, results[0].index)
        assert torch.equal(result.codes, results[0].codes)


def test_records_count_what_is_unused() -> None:
    points = torch.zeros(1, 1, 10)
    pool = torch.tensor([[0.0], [1.0], [2.0]])
    (record,) = refine(points, pool, torch.tensor([[0, 0, 1]]), rounds=0).stats
    assert (record.empty, record.unused) == (2, 2)
    assert record.objective == 0
    assert math.isfinite(record.seconds)
