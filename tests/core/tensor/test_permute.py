"""Column permutations: the objective against its definition, the search, and free permutations."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from groupings import grouped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.spec import KMeansSpec
from dpq_core.tensor.basis import permute
from dpq_core.tensor.basis.permute import (
    ColumnMoments,
    bucket_start,
    column_moments,
    correlated_start,
    objective,
    search,
)
from dpq_core.tensor.basis.permute_search import RIDGE, SwapSearch

pytestmark = pytest.mark.portable


def cut(d: int, sharing: int) -> Grouping:
    """The two numbers of a grouping that a search reads."""
    return Grouping(rows=1, cols=d, d=d, groups=1, groups_per_codebook=sharing)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _structured(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Correlated columns of different scales and means, in no particular order."""
    mixing = _random(cols, cols, seed=seed) * 0.3 + torch.eye(cols)
    scale = torch.linspace(0.3, 2.0, cols)[_shuffled(cols, seed)]
    return (_random(rows, cols, seed=seed + 1) @ mixing) * scale + _random(cols, seed=seed + 2)


def _oracle(matrix: Tensor, perm: Tensor, d: int, sharing: int) -> float:
    """The objective from the subvectors themselves: gathers them, takes their covariance."""
    groups = matrix.shape[1] // d
    moved = matrix.double()[:, perm[: groups * d]].view(-1, groups, d)
    ridge = RIDGE * matrix.double().var(dim=0, correction=0).mean() * torch.eye(d)
    total = 0.0
    for first in range(0, groups, sharing):
        points = moved[:, first : first + sharing].reshape(-1, d)
        sigma = points.T.cov(correction=0).reshape(d, d) + ridge
        total += len(points) / len(moved) * float(torch.linalg.det(sigma)) ** (1 / d)
    return total


# -- the objective --------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [1, 2, 5, 7, 99], ids=lambda t: f"sharing{t}")
@pytest.mark.parametrize(("cols", "d"), [(28, 4), (30, 4), (14, 2), (7, 1), (27, 8)])
def test_objective_is_its_definition(cols: int, d: int, sharing: int) -> None:
    matrix, perm = _structured(50, cols), _shuffled(cols, 3)
    value = objective(column_moments(matrix), perm, cut(d, sharing))
    assert value == pytest.approx(_oracle(matrix, perm, d, sharing), rel=1e-5)


def test_objective_scales_with_the_variance_and_ignores_a_common_shift() -> None:
    matrix, perm = _structured(50, 24), torch.arange(24)
    value = objective(column_moments(matrix), perm, cut(4, 3))
    assert objective(column_moments(matrix * 1e-6), perm, cut(4, 3)) == pytest.approx(
        value * 1e-12, rel=1e-4
    )
    assert objective(column_moments(matrix + 30), perm, cut(4, 3)) == pytest.approx(value, rel=1e-3)


def test_importance_scales_columns_by_its_root() -> None:
    matrix, importance = _structured(40, 12), torch.rand(12) + 0.1
    moments = column_moments(matrix, importance)
    expected = column_moments(matrix * importance.sqrt())
    torch.testing.assert_close(moments.covariance, expected.covariance)
    torch.testing.assert_close(moments.mean, expected.mean)
    plain = column_moments(matrix)
    torch.testing.assert_close(plain.covariance, matrix.T.cov(correction=0))
    torch.testing.assert_close(plain.mean, matrix.double().mean(dim=0))


# -- the search -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    cols=st.integers(1, 40),
    d=st.integers(1, 6),
    sharing=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_search_never_raises_the_objective(cols: int, d: int, sharing: int, seed: int) -> None:
    matrix = _structured(20, cols, seed=seed)
    moments = column_moments(matrix)
    found = search(moments, cut(d, sharing), swaps=600, seed=seed)
    assert sorted(found.perm.tolist()) == list(range(cols))
    assert found.after <= found.before
    identity = torch.arange(cols)
    assert found.before == pytest.approx(objective(moments, identity, cut(d, sharing)))
    assert found.after == pytest.approx(objective(moments, found.perm, cut(d, sharing)))
    full = cols // d * d
    assert torch.equal(found.perm[full:], identity[full:])  # a padded group stays as it is


@pytest.mark.parametrize("sharing", [1, 2, 3, 5, 12, 24], ids=lambda t: f"sharing{t}")
def test_every_round_keeps_or_lowers_the_objective(sharing: int) -> None:
    moments = column_moments(_structured(200, 24 * 3))
    local = SwapSearch(moments.mean, moments.covariance, cut(3, sharing))
    order = torch.arange(72).view(24, 3)
    generator = torch.Generator().manual_seed(0)
    first = last = float(local.costs(order).sum())
    for _ in range(60):
        assert local.round(order, generator) > 0
        cost = float(local.costs(order).sum())
        assert cost <= last * (1 + 1e-12)
        assert sorted(order.flatten().tolist()) == list(range(72))
        last = cost
    assert last < 0.95 * first


@pytest.mark.parametrize("sharing", [1, 24], ids=lambda t: f"sharing{t}")
def test_one_round_takes_many_swaps(sharing: int) -> None:
    moments = column_moments(_structured(200, 24 * 3))
    local = SwapSearch(moments.mean, moments.covariance, cut(3, sharing))
    order = torch.arange(72).view(24, 3)
    local.round(order, torch.Generator().manual_seed(0))
    assert int((order != torch.arange(72).view(24, 3)).sum()) > 12


@pytest.mark.slow
@pytest.mark.parametrize("sharing", [1, 3, 6], ids=lambda t: f"sharing{t}")
def test_search_ends_where_no_swap_between_codebooks_helps(sharing: int) -> None:
    moments = column_moments(_structured(100, 24))
    found = search(moments, cut(4, sharing), swaps=20_000)
    for i, j in itertools.combinations(range(24), 2):
        if i // 4 == j // 4:
            continue  # the search swaps between groups
        other = found.perm.clone()
        other[[i, j]] = other[[j, i]]
        assert objective(moments, other, cut(4, sharing)) >= found.after * (1 - 1e-9), (i, j)


@pytest.mark.parametrize("cols", [12, 17, 32])
@pytest.mark.parametrize("sharing", [1, 2, 3, 100], ids=lambda t: f"sharing{t}")
def test_ending_where_no_swap_helps_changes_nothing(monkeypatch, cols: int, sharing: int) -> None:
    def every_round(local, order, swaps, generator, *, is_last=False):
        done = 0
        while done < swaps:
            done += local.round(order, generator)
        return done

    moments = column_moments(_structured(50, cols))
    found = search(moments, cut(4, sharing), swaps=8000)
    monkeypatch.setattr(permute, "_descend", every_round)
    expected = search(moments, cut(4, sharing), swaps=8000)
    assert torch.equal(found.perm, expected.perm)
    assert found.after == expected.after
    if cols == 12 and sharing != 2:
        assert found.swaps < expected.swaps


def test_the_seed_decides_and_the_budget_is_kept() -> None:
    moments = column_moments(_structured(60, 64))
    runs = [search(moments, cut(4, 1), swaps=3000, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].perm, runs[1].perm)
    assert not torch.equal(runs[0].perm, runs[2].perm)
    per_round = 8 * 16  # pairs of groups times pairs of columns
    assert 3000 <= runs[0].swaps < 3000 + 3 * per_round  # three starts
    none = search(moments, cut(4, 1), swaps=0)
    assert none.swaps == 0
    assert runs[0].after < none.after


@pytest.mark.parametrize("swaps", [0, 100_000], ids=["greedy", "search"])
def test_planted_groups_are_recovered(swaps: int) -> None:
    """Columns of one block are noisy copies of each other: each block must become a group."""
    blocks, d = 24, 4
    source = _random(300, blocks).repeat_interleave(d, dim=1)
    planted = source + 0.5 * _random(300, blocks * d, seed=1)
    shuffle = _shuffled(blocks * d, 2)
    found = search(column_moments(planted[:, shuffle]), cut(d, 1), swaps=swaps)
    groups = {frozenset((shuffle[found.perm].view(-1, d)[g] // d).tolist()) for g in range(blocks)}
    assert groups == {frozenset([b]) for b in range(blocks)}
    assert found.after < 0.6 * found.before


@pytest.mark.slow
def test_planted_coordinates_of_a_shared_codebook_are_recovered() -> None:
    """All groups have one covariance, with strong correlations; the search finds as low a one."""
    groups, d = 24, 4
    factor = torch.tensor([[2.0, 0, 0, 0], [1.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, -0.8, 0.3]])
    planted = (_random(400, groups, d) @ factor.T).reshape(400, groups * d)
    shuffle = _shuffled(groups * d, 2)
    moments = column_moments(planted[:, shuffle])
    goal = objective(moments, shuffle.argsort(), cut(d, groups))
    found = search(moments, cut(d, groups))
    assert found.before > 1.8 * goal
    assert found.after < 1.1 * goal


@pytest.mark.slow
def test_a_lower_objective_is_a_lower_error() -> None:
    matrix = _structured(384, 48)
    for sharing in (1, 12):
        found = search(column_moments(matrix), cut(4, sharing), swaps=30_000)
        errors = []
        for m in (matrix, matrix[:, found.perm]):
            points = m.T.contiguous().view(12, 4, 384)
            result = kmeans(
                points, K=32, grouping=grouped(points, sharing), spec=KMeansSpec(), seed=0
            )
            errors.append(result.stats[-1].objective)
        assert errors[1] < 0.93 * errors[0], sharing


def test_nothing_to_gain_gives_the_identity() -> None:
    unit = ColumnMoments(mean=torch.zeros(16, dtype=torch.float64), covariance=torch.eye(16))
    dead = ColumnMoments(mean=torch.zeros(16, dtype=torch.float64), covariance=torch.zeros(16, 16))
    variance = 1 + 1e-8 * torch.linspace(-1, 1, 16, dtype=torch.float64)[_shuffled(16, 0)]
    nearly = ColumnMoments(mean=torch.zeros(16, dtype=torch.float64), covariance=variance.diag())
    for moments in (unit, dead, nearly):
        for sharing in (1, 2, 4):
            found = search(moments, cut(4, sharing), swaps=500)
            assert torch.equal(found.perm, torch.arange(16))
            assert found.after == found.before
    few = search(column_moments(_structured(9, 7)), cut(4, 1))  # one full group and a padded one
    assert torch.equal(few.perm, torch.arange(7))


def test_dead_and_copied_columns_are_handled() -> None:
    matrix = _structured(30, 16)
    matrix[:, 3] = 0
    matrix[:, 8] = matrix[:, 1]
    found = search(column_moments(matrix), cut(4, 1), swaps=5000)
    assert 0 < found.after < found.before
    group = [set(g) for g in found.perm.view(4, 4).tolist()]
    assert any({1, 8} <= g for g in group)


def test_non_finite_columns_are_refused() -> None:
    matrix = _random(5, 8)
    matrix[2, 3] = torch.nan
    with pytest.raises(SpecError, match="NaN or infinite"):
        search(column_moments(matrix), cut(2, 1))


def test_a_hundred_thousand_swaps_take_seconds() -> None:
    moments = column_moments(_random(1152, 1152))
    begin = time.perf_counter()
    found = search(moments, cut(4, 1), swaps=100_000)
    assert found.swaps >= 100_000
    assert time.perf_counter() - begin < 10  # 0.3 s where nothing else runs


# -- greedy starts --------------------------------------------------------------------------------


def test_bucket_start_gives_each_coordinate_a_share_of_the_ranks() -> None:
    variance = torch.tensor([5.0, 1, 8, 3, 2, 7, 4, 6, 99])
    order = bucket_start(variance.diag(), 4, 2)  # the ninth column fills no group
    assert set(variance[order[:, 0]].tolist()) == {8, 7, 6, 5}
    assert set(variance[order[:, 1]].tolist()) == {4, 3, 2, 1}


def test_bucket_start_alone_is_best_for_uncorrelated_columns_of_a_shared_codebook() -> None:
    variance = torch.linspace(0.1, 3.0, 24, dtype=torch.float64)
    shuffled = variance[_shuffled(24, 1)].diag()
    moments = ColumnMoments(mean=torch.zeros(24, dtype=torch.float64), covariance=shuffled)
    shares = variance.view(3, 8).mean(dim=1) + RIDGE * variance.mean()
    found = search(moments, cut(3, 8), swaps=0)
    assert found.after == pytest.approx(8 * float(shares.prod()) ** (1 / 3))


def test_correlated_start_follows_the_explained_share() -> None:
    covariance = torch.tensor(
        [
            [1.0, 0.0, 0.9, 0.1],
            [0.0, 4.0, 0.5, 1.9],
            [0.9, 0.5, 1.0, 0.0],
            [0.1, 1.9, 0.0, 2.0],
        ]
    )
    # Column 1 varies most; it explains 0.25 of column 2 and 0.45 of column 3.
    assert correlated_start(covariance, 2, 2).tolist() == [[1, 3], [0, 2]]
