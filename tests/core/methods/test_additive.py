"""Additive codebooks: brute force, dense least squares, monotonicity, equal paths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from groupings import grouped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.kernels.cpu import additive as sums
from dpq_core.kernels.cpu import beam as kernel
from dpq_core.methods.additive import fit as additive_fit
from dpq_core.methods.additive import stages as additive
from dpq_core.methods.additive.stages import (
    AlternateSpec,
    alternate,
    beam_search,
    decode_sum,
    encoder,
    fit_codebooks,
    residual_kmeans,
    squared_errors,
    sweep,
)
from dpq_core.methods.assignment.assign import assign
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.spec import KMeansSpec

PLAIN = KMeansSpec(iterations=0, tail=6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes_like(S: int, G: int, P: int, K: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(K, (S * G, P), generator=generator, dtype=torch.int32)


def metrics(G: int, d: int, seed: int = 5) -> Tensor:
    half = normal(G, d, d, seed=seed)
    return half @ half.mT + 0.1 * torch.eye(d)


def counted(metric: Tensor | None, G: int, d: int, pad: int) -> Tensor:
    """The metric [G, d, d] in float64, blind to the pad."""
    full = torch.eye(d).repeat(G, 1, 1) if metric is None else metric.clone()
    full[-1, d - pad :] = 0
    full[-1, :, d - pad :] = 0
    return full.double()


def brute_force(x: Tensor, books: Tensor, stages: int, sharing: int, metric: Tensor) -> Tensor:
    """Errors float64 [G, P] of the best of all K^S sums."""
    G, _, P = x.shape
    C, K = len(books) // stages, books.shape[1]
    best = torch.full((G, P), torch.inf, dtype=torch.float64)
    for choice in itertools.product(range(K), repeat=stages):
        for g in range(G):
            total = torch.stack([books[s * C + g // sharing, k] for s, k in enumerate(choice)]).sum(
                0
            )
            wrong = (x[g] - total[:, None]).double()
            best[g] = torch.minimum(best[g], (wrong * (metric[g] @ wrong)).sum(0))
    return best


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("with_metric", [False, True], ids=["l2", "metric"])
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize(("stages", "K"), [(1, 7), (2, 9), (3, 5)])
def test_a_wide_beam_finds_the_best_of_all_sums(
    stages: int, K: int, pad: int, with_metric: bool
) -> None:
    G, d, P, sharing = 3, 5, 12, 2
    x, books = normal(G, d, P), normal(stages * 2, K, d, seed=1)
    metric = metrics(G, d) if with_metric else None
    where = {"grouping": grouped(x, sharing, stages=stages, pad=pad)}
    codes = beam_search(x, books, metric=metric, beam=K ** (stages - 1), **where)
    found = squared_errors(x, books, codes, metric=metric, **where)
    best = brute_force(x, books, stages, sharing, counted(metric, G, d, pad))
    torch.testing.assert_close(found.double(), best, rtol=1e-4, atol=1e-5)
    assert codes.shape == (stages * G, P)
    assert codes.dtype == torch.int32


def test_the_metric_decides() -> None:
    """Under a metric that sees one coordinate only, the other one may be as wrong as it likes."""
    x = torch.tensor([[[0.0], [0.0]]])  # one group, d=2, one point
    books = torch.tensor([[[0.0, 0.5], [0.1, 0.0]], [[0.0, 5.0], [9.0, 0.0]]])
    one_sided = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert beam_search(x, books, grouping=grouped(x, stages=2), beam=2).tolist() == [[1], [0]]
    assert beam_search(
        x, books, grouping=grouped(x, stages=2), beam=2, metric=one_sided
    ).tolist() == [[0], [0]]
    mirrored = one_sided.flip(1, 2)
    assert beam_search(
        x, books, grouping=grouped(x, stages=2), beam=2, metric=mirrored
    ).tolist() == [[1], [1]]


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40), st.integers(2, 40)),
    st.integers(2, 3),
    st.integers(2, 9),
)
@settings(max_examples=25, deadline=None)
def test_both_paths_find_the_same_sums(
    shape: tuple[int, int, int, int], stages: int, beam: int
) -> None:
    G, d, P, K = shape
    x, books = normal(G, d, P), normal(stages, 2, K, d, seed=1)
    book_of = torch.arange(G) % 2
    keep = min(3, K)
    fast = kernel.search(x, books, book_of, beam, keep)
    slow = kernel._by_torch(x, books, book_of, max(beam, keep), keep)
    errors = []
    for found in (fast, slow):  # [keep, S, G, P]
        assert found.shape == (keep, stages, G, P)
        sums = torch.zeros(keep, G, d, P)
        for n, s, g in itertools.product(range(keep), range(stages), range(G)):
            sums[n, g] += books[s, book_of[g], found[n, s, g].long()].T
        errors.append((x - sums).square().sum(2))
    torch.testing.assert_close(*errors, rtol=1e-4, atol=1e-5)
    assert bool((errors[0].diff(dim=0) >= -1e-5).all())


@pytest.mark.parametrize("pad", [0, 1])
def test_a_beam_of_one_is_greedy(pad: int) -> None:
    G, d, P, K = 4, 3, 30, 16
    x, books = normal(G, d, P), normal(6, K, d, seed=2)
    codes = beam_search(x, books, grouping=grouped(x, 2, stages=3, pad=pad), beam=1).view(3, G, P)
    residual = x.double()
    for s in range(3):
        for g in range(G):
            used = d - pad if g == G - 1 else d
            own = books[2 * s + g // 2].double()
            distance = (residual[g, :used].T[:, None] - own[:, :used]).square().sum(2)
            torch.testing.assert_close(
                distance.gather(1, codes[s, g].long()[:, None])[:, 0], distance.min(1).values
            )
            residual[g] -= own[codes[s, g].long()].T


def test_wider_beams_and_sweeps_serve_better() -> None:
    x, books = (
        normal(4, 8, 400),
        normal(3, 64, 8, seed=1) * torch.tensor([1.0, 0.7, 0.5])[:, None, None],
    )
    where = {"grouping": grouped(x, 4, stages=3)}
    means, swept = [], []
    for beam in (1, 2, 4, 16):
        codes = beam_search(x, books, beam=beam, **where)
        before = squared_errors(x, books, codes, **where)
        after = squared_errors(x, books, sweep(x, books, codes, **where), **where)
        assert bool((after <= before * (1 + 1e-5) + 1e-6).all())
        means.append(float(before.mean()))
        swept.append(float(after.mean()))
    assert means == sorted(means, reverse=True)
    assert means[3] < 0.8 * means[0]
    assert swept[0] < 0.98 * means[0]


@pytest.mark.parametrize("with_metric", [False, True], ids=["l2", "metric"])
@pytest.mark.parametrize("pad", [0, 1])
def test_sweeps_end_where_no_single_stage_can_improve(pad: int, with_metric: bool) -> None:
    G, d, P, K, S = 3, 4, 25, 6, 3
    x, books = normal(G, d, P), normal(S, K, d, seed=1)
    metric = metrics(G, d) if with_metric else None
    where = {"grouping": grouped(x, G, stages=S, pad=pad), "metric": metric}
    codes, given = codes_like(S, G, P, K), codes_like(S, G, P, K)
    for _ in range(20):
        before, codes = codes, sweep(x, books, codes, **where)
    assert torch.equal(codes, before)
    assert torch.equal(given, codes_like(S, G, P, K))
    errors = squared_errors(x, books, codes, **where)
    for s, k in itertools.product(range(S), range(K)):
        other = codes.clone()
        other[s * G : (s + 1) * G] = k
        assert bool((errors <= squared_errors(x, books, other, **where) + 1e-5).all())


def test_errors_are_those_of_the_decoded_sums() -> None:
    x, books, codes = normal(4, 5, 9), normal(4, 7, 5, seed=1), codes_like(2, 4, 9, 7)
    decoded = decode_sum(codes, books, grouped(x, 2, stages=2))
    for g in range(4):
        for p in range(9):
            expected = books[g // 2, codes[g, p]] + books[2 + g // 2, codes[4 + g, p]]
            torch.testing.assert_close(decoded[g, :, p], expected)
    wrong = (x - decoded).square()
    for pad in (0, 2):
        wrong[-1, 5 - pad :] = 0
        errors = squared_errors(x, books, codes, grouped(x, 2, stages=2, pad=pad))
        torch.testing.assert_close(errors, wrong.sum(1))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("sharing", "pad"), [(1, 0), (2, 0), (5, 3), (2, 1)])
def test_fitted_codebooks_are_the_least_squares_solution(
    sharing: int, pad: int, weighted: bool
) -> None:
    G, d, P, K, S = 5, 4, 60, 6, 2
    x, codes = normal(G, d, P), codes_like(S, G, P, K)
    codes[codes == 4] = 5  # nobody uses codeword 4
    C = -(-G // sharing)
    start = normal(S * C, K, d, seed=3)
    weights = torch.rand(G, P, generator=torch.Generator().manual_seed(1)) if weighted else None
    fitted = fit_codebooks(
        x, start, codes, grouping=grouped(x, sharing, stages=S, pad=pad), weights=weights
    )
    assert torch.equal(fitted[:, 4], start[:, 4])
    decoded = decode_sum(codes, fitted, grouped(x, sharing, stages=S))
    for c, i in itertools.product(range(C), range(d)):
        groups = [
            g for g in range(c * sharing, min(G, c * sharing + sharing)) if g < G - 1 or i < d - pad
        ]
        if not groups:
            continue
        hot = torch.nn.functional.one_hot(codes.view(S, G, P)[:, groups].long(), K)
        design = hot.movedim(0, 2).reshape(-1, S * K).double()
        w = (weights[groups] if weights is not None else torch.ones(len(groups), P)).double()
        root = w.sqrt().reshape(-1, 1)
        target = x[groups, i].double().reshape(-1, 1)
        solution = torch.linalg.lstsq(root * design, root * target, driver="gelsd").solution
        expected = (design @ solution).reshape(len(groups), P)
        torch.testing.assert_close(decoded[groups, i].double(), expected, rtol=1e-4, atol=1e-4)


def test_one_stage_is_solved_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, a codeword's best place is the mean of its members, however many there are."""
    monkeypatch.setattr(additive_fit, "SOLVER_STEPS", 1)
    x, codes = normal(1, 3, 400), codes_like(1, 1, 400, 4)
    codes[0, :300] = 2
    fitted = fit_codebooks(x, normal(1, 4, 3, seed=1), codes, grouped(x))
    for k in range(4):
        torch.testing.assert_close(fitted[0, k], x[0][:, codes[0] == k].mean(1))


def test_codebooks_of_few_points_stay_near_them() -> None:
    # A singular system whose residual falls to rounding: steps along rounding lead to infinity.
    for seed in range(40):
        points, codes = normal(3, 1, 25, seed=seed), codes_like(2, 3, 25, 25, seed=seed)
        fitted = fit_codebooks(
            points, normal(6, 25, 1, seed=seed + 99), codes, grouped(points, stages=2)
        )
        assert fitted.abs().max() < 10


@pytest.mark.slow
def test_sums_over_members_do_not_depend_on_the_path_or_threads(restore_threads: None) -> None:
    S, G, d, P, K, C = 3, 6, 5, 3000, 11, 2
    x, codes = normal(G, d, P), codes_like(S, G, P, K).view(S, G, P)
    words = normal(S, C, K, d, seed=1).double()
    weights = torch.rand(G, P, generator=torch.Generator().manual_seed(1))
    for points, w, pad in ((x, None, 0), (x, weights, 2), (None, weights, 1)):
        where = {"grouping": grouped(x, 3, stages=S, pad=pad), "weights": w}
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(sums.scatter_residual(points, codes, words, **where))
        assert torch.equal(*results)
        slow = sums._by_torch(points, codes, words, **where)
        torch.testing.assert_close(results[0], slow, rtol=1e-9, atol=1e-9)


def test_residual_kmeans_is_kmeans_of_what_is_left() -> None:
    x = normal(4, 6, 300)
    where = {"K": 16, "spec": PLAIN}
    result = residual_kmeans(x, grouped(x, 2, stages=3, pad=1), seed=7, **where)
    left, C = x, 2
    for s in range(3):
        stage = kmeans(left, grouped(x, 2, pad=1), seed=7 + s, **where)
        assert torch.equal(result.codebooks[s * C : (s + 1) * C], stage.codebooks)
        assert torch.equal(result.codes[s * 4 : (s + 1) * 4], stage.codes)
        left = left - decode_sum(stage.codes, stage.codebooks, grouped(x, 2))
    assert len(result.codebooks) == 3 * C
    assert len(result.codes) == 3 * 4
    objectives = [
        squared_errors(
            x, result.codebooks[: s * C], result.codes[: s * 4], grouped(x, 2, stages=s, pad=1)
        ).mean()
        for s in (1, 2, 3)
    ]
    assert objectives[0] > objectives[1] > objectives[2]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("beam", "sweeps"), [(0, 1), (1, 0), (4, 1)])
def test_rounds_without_noise_never_get_worse(beam: int, sweeps: int, weighted: bool) -> None:
    x = normal(3, 4, 500)
    weights = normal(3, 500, seed=4).square() if weighted else None
    begin = residual_kmeans(
        x, grouping=grouped(x, 3, stages=2), K=16, spec=PLAIN, seed=0, weights=weights
    )
    spec = AlternateSpec(rounds=5, beam=beam, sweeps=sweeps, noise=0.0, tolerance=0.0)
    where = {"grouping": grouped(x, 3, stages=2), "weights": weights}
    result = alternate(x, begin.codebooks, begin.codes, spec=spec, **where)

    def objective(books: Tensor, codes: Tensor) -> float:
        w = torch.ones(3, 500) if weights is None else weights
        errors = (x - decode_sum(codes, books, grouped(x, 3, stages=2))).square().sum(1)
        return float((errors * w).sum() / w.sum())

    values = [objective(begin.codebooks, begin.codes)]
    for record in result.stats:
        values += [record.updated, record.objective]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(values))
    assert values[-1] == pytest.approx(objective(result.codebooks, result.codes), rel=1e-4)
    assert values[-1] < 0.99 * values[0]
    assert result.stats[0].moved > 0
    fitted = fit_codebooks(x, begin.codebooks, begin.codes, **where)
    assert values[1] == pytest.approx(objective(fitted, begin.codes), rel=1e-4)


@pytest.mark.slow
def test_noise_pays_is_seeded_and_never_loses_to_the_start() -> None:
    x = normal(4, 6, 700)
    begin = residual_kmeans(x, grouping=grouped(x, stages=2), K=32, spec=PLAIN, seed=0)

    def run(**changes: float) -> additive.AdditiveResult:
        spec = AlternateSpec(**{"rounds": 10, "beam": 2, "tolerance": 0.0, **changes})
        return alternate(x, begin.codebooks, begin.codes, grouping=grouped(x, stages=2), spec=spec)

    def error(result: additive.AdditiveResult) -> float:
        return float(
            squared_errors(x, result.codebooks, result.codes, grouping=grouped(x, stages=2)).mean()
        )

    noisy = run()
    assert error(noisy) < error(run(noise=0.0))
    assert torch.equal(noisy.codes, run().codes)
    assert not torch.equal(noisy.codes, run(seed=1).codes)
    assert error(noisy) == pytest.approx(min(s.objective for s in noisy.stats), rel=1e-5)
    assert error(run(rounds=3, noise=50.0)) <= error(begin) * (1 + 1e-6)
    assert torch.equal(run(rounds=0).codes, begin.codes)


def test_rounds_end_when_they_gain_too_little() -> None:
    x = normal(2, 4, 300)
    begin = residual_kmeans(x, grouping=grouped(x, stages=2), K=16, spec=PLAIN, seed=0)
    spec = AlternateSpec(rounds=30, noise=0.0, tolerance=0.01)
    stats = alternate(
        x, begin.codebooks, begin.codes, grouping=grouped(x, stages=2), spec=spec
    ).stats
    objectives = [record.objective for record in stats]
    gains = [1 - after / before for before, after in itertools.pairwise(objectives)]
    assert 2 <= len(stats) < 30
    assert gains[-1] <= 0.01
    assert all(gain > 0.01 for gain in gains[:-1])


@pytest.mark.parametrize("d", [2, 4])
def test_sums_of_codewords_come_back_exactly(d: int) -> None:
    books = normal(2 * 3, 8, d, seed=9)
    codes = codes_like(2, 3, 50, 8)
    cut = Grouping.of_subvectors((3, d, 50), stages=2)
    x = decode_sum(codes, books, cut)
    found = beam_search(x, books, grouping=grouped(x, stages=2), beam=8)
    assert float(squared_errors(x, books, found, grouping=grouped(x, stages=2)).max()) < 1e-10
    assert torch.equal(decode_sum(found, books, cut), x)


def test_the_encoder_serves_hessian_aware_assignment() -> None:
    rows, cols, d = 96, 32, 4
    W = normal(rows, cols)
    inputs = normal(400, cols, seed=3) @ normal(cols, cols, seed=4)
    points = W.T.reshape(cols // d, d, rows)
    cut = grouped(points, 4, stages=2)
    objective = Objective.of(W, inputs.T @ inputs / 400, cut)
    begin = residual_kmeans(points, cut, K=16, spec=PLAIN, seed=0)
    books = begin.codebooks
    plain = assign(objective, books, method="ldlq+icm")
    searched = assign(objective, books, method="ldlq+icm", encoder=encoder(books, cut, beam=8))
    assert searched.errors[-1] < 0.95 * plain.errors[-1]
    assert searched.codes.shape == (2 * (cols // d), rows)
    decoded = decode_sum(searched.codes, books, cut).reshape(cols, rows).T
    torch.testing.assert_close(decoded, searched.core_hat)

    metric, group = metrics(1, d), 6
    codes = encoder(books, cut, beam=16)(points[group].T, metric[0], group)
    own = books.view(2, 2, 16, d)[:, group // 4]
    one_group = grouped(points[:1], stages=2)
    best = brute_force(points[group][None], own, 2, 1, metric.double())
    found = squared_errors(
        points[group][None],
        own,
        codes,
        one_group,
        metric=metric,
    )
    torch.testing.assert_close(found.double(), best, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named() -> None:
    x, books = normal(2, 4, 5), normal(3, 8, 4)
    with pytest.raises(SpecError, match=r"codebooks \[3, 8, 4\] cannot be split into 2 stages"):
        beam_search(x, books, grouping=grouped(x, 2, stages=2))
    with pytest.raises(SpecError, match="beam must be at least 1, not 0"):
        beam_search(x, books, grouping=grouped(x, 2, stages=3), beam=0)
    with pytest.raises(SpecError, match=r"metric must be \[2, 4, 4\], not \[4, 4\]"):
        beam_search(x, books, grouping=grouped(x, 2, stages=3), metric=torch.eye(4))
    with pytest.raises(SpecError, match=r"2 groups, 1 per codebook, need codebooks \[2, K, 4\]"):
        sweep(x, books, codes_like(3, 2, 5, 8), grouped(x, stages=3))
