"""Closed-form updates: against dense least squares, and never a step up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import (
    damped,
    decode,
    layer,
    layers,
    normal,
    objective_of,
    output_error,
    second_moment,
)
from torch import Tensor

from dpq_core.methods.assignment import least_squares
from dpq_core.methods.assignment import normal as normal_equations
from dpq_core.methods.assignment import objective as objective_module
from dpq_core.methods.assignment.assign import assign
from dpq_core.methods.assignment.least_squares import refine, relearn, update_codebooks
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.spec import KMeansSpec

pytestmark = pytest.mark.portable


def random_codes(objective: Objective, K: int, stages: int = 1, seed: int = 0) -> Tensor:
    shape = (stages * objective.grouping.groups, objective.grouping.points)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, K, shape, dtype=torch.int32, generator=generator)


def pooled(codebooks: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A pool of about half as many vectors as there are codewords, and an index map."""
    size = max(1, codebooks.shape[0] * codebooks.shape[1] // 2)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, size, codebooks.shape[:2], generator=generator, dtype=torch.int32)
    return codebooks.reshape(-1, codebooks.shape[2])[:size].clone(), index


def metric_of(sizes: dict[str, Any]) -> Tensor:
    H = second_moment(sizes["cols"], sizes.get("rank", 1000), sizes.get("seed", 0) + 2)
    return damped(H, sizes.get("damping", 0.01))


def least_error(
    objective: Objective,
    codes: Tensor,
    books: Tensor,
    H: Tensor,
    index: Tensor | None,
) -> float:
    """The lowest output error for these codes, by dense least squares in float64."""
    words = torch.eye(books.shape[0] * books.shape[1]) if index is None else torch.eye(len(books))
    weights = objective.row_weight
    root = torch.linalg.cholesky(H)
    scale = torch.ones(len(objective.core)) if weights is None else weights
    columns = []
    coordinates = range(objective.grouping.d)
    for word, i in itertools.product(words, coordinates):  # unit vectors of all unknowns
        basis = torch.zeros(len(words), objective.grouping.d)
        basis[:, i] = word
        basis = basis.view(books.shape) if index is None else basis[index.long()]
        image = decode(objective, codes, basis).double() @ root
        columns.append((scale.double().sqrt()[:, None] * image).flatten())
    design = torch.stack(columns, dim=1)
    target = (scale.double().sqrt()[:, None] * (objective.core.double() @ root)).flatten()
    solution = torch.linalg.pinv(design) @ target
    return float((target - design @ solution).square().sum())


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(layers, st.booleans())
def test_an_update_never_raises_the_error(sizes: dict[str, Any], pool: bool) -> None:
    objective, books = layer(**sizes)
    codes = random_codes(objective, sizes["K"], sizes["stages"], sizes["seed"])
    values, index = pooled(books, sizes["seed"]) if pool else (books, None)
    update = update_codebooks(objective, codes, values, index_map=index)
    assert update.codebooks.shape == values.shape
    for before, after in itertools.pairwise(update.errors):
        assert after <= before
    H, errors = metric_of(sizes), []
    for vectors in (values, update.codebooks):
        read = vectors if index is None else vectors[index.long()]
        core_hat = decode(objective, codes, read)
        errors.append(output_error(objective.core, core_hat, H, objective.row_weight))
    energy = output_error(objective.core, torch.zeros_like(core_hat), H, objective.row_weight)
    slack = 1e-4 * errors[0] + 1e-6 * energy + 1e-6
    assert errors[1] <= errors[0] * (1 + 1e-6) + 1e-9
    assert update.errors[0] == pytest.approx(errors[0], rel=1e-3, abs=slack)
    assert update.errors[-1] == pytest.approx(errors[1], rel=1e-3, abs=slack)


@pytest.mark.parametrize("orientation", ["input", "output"])
@pytest.mark.parametrize(
    ("sharing", "stages", "pool"), [(1, 1, False), (2, 2, False), (3, 1, True)]
)
def test_the_minimum_is_reached(
    orientation: str, sharing: int, stages: int, pool: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "TOLERANCE", 0.0)
    monkeypatch.setattr(normal_equations, "COUNTS", 4)  # counters of one group at a time
    sizes = {
        "rows": 18,
        "cols": 14,
        "d": 4,
        "K": 4,
        "sharing": sharing,
        "stages": stages,
        "weighted": True,
    }
    objective, books = layer(**sizes, orientation=orientation, rank=20, damping=0.1)
    codes = random_codes(objective, 4, stages)
    values, index = pooled(books, 0) if pool else (books, None)
    H = damped(second_moment(14, 20, 2), 0.1)
    update = update_codebooks(objective, codes, values, index_map=index, iterations=200)
    lowest = least_error(objective, codes, books if index is None else values, H, index)
    assert update.errors[0] > 1.05 * lowest
    assert update.errors[-1] == pytest.approx(lowest, rel=1e-4)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, books = layer(rows=2100, cols=12, d=4, K=8, rank=20)
    codes = random_codes(objective, 8)
    whole = update_codebooks(objective, codes, books)
    monkeypatch.setattr(objective_module, "CHUNK_FLOATS", 1)
    assert len(objective.chunks()) == 3
    parts = update_codebooks(objective, codes, books)
    torch.testing.assert_close(parts.codebooks, whole.codebooks, rtol=1e-3, atol=1e-4)


def test_white_inputs_give_weighted_means() -> None:
    core, weights = normal(50, 8, seed=0), normal(50, seed=1).square()
    objective = objective_of(core, torch.eye(8), d=4, row_weight=weights)
    codes = random_codes(objective, 6)
    codes[0, :40] = 5
    codes[1] %= 5
    start = normal(2, 6, 4, seed=2)
    found = update_codebooks(objective, codes, start).codebooks
    for j, k in itertools.product(range(2), range(6)):
        members = codes[j] == k
        if not members.any():
            torch.testing.assert_close(found[j, k], start[j, k], rtol=0, atol=0)
            continue
        mean = (weights[members, None] * core[members, 4 * j : 4 * j + 4]).sum(0)
        torch.testing.assert_close(found[j, k], mean / weights[members].sum(), rtol=1e-4, atol=1e-5)
    assert not (codes[1] == 5).any()


@pytest.mark.parametrize("sharing", [1, 3])
def test_codewords_are_found_again(sharing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "TOLERANCE", 0.0)
    objective, books = layer(rows=60, cols=22, d=4, K=8, sharing=sharing, rank=40)
    codes = random_codes(objective, 8)
    core = decode(objective, codes, books)
    planted = objective_of(core, objective.hessian, d=4, sharing=sharing)
    away = books + normal(*books.shape, seed=9)
    update = update_codebooks(planted, codes, away, iterations=300)
    assert update.errors[-1] < 1e-6 * update.errors[0]
    if sharing == 3:  # with one codebook per group a shift of one may be made up for by another
        torch.testing.assert_close(update.codebooks, books, rtol=0, atol=0.05)


def test_at_the_minimum_nothing_is_touched() -> None:
    objective, books = layer(rows=60, cols=20, d=4, K=8)
    codes = random_codes(objective, 8)
    core = decode(objective, codes, books)
    update = update_codebooks(objective_of(core, objective.hessian, d=4), codes, books)
    assert update.codebooks is books
    assert len(update.errors) == 1


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(layers, st.booleans())
def test_refining_never_raises_the_error(sizes: dict[str, Any], pool: bool) -> None:
    objective, books = layer(**sizes)
    codes = random_codes(objective, sizes["K"], sizes["stages"], sizes["seed"])
    values, index = pooled(books, sizes["seed"]) if pool else (books, None)
    refined = refine(objective, codes, values, index_map=index, rounds=2)
    assert len(refined.errors) == 5
    for before, after in itertools.pairwise(refined.errors):
        assert after <= before
    read = refined.codebooks if index is None else refined.codebooks[index.long()]
    core_hat = decode(objective, refined.codes, read)
    torch.testing.assert_close(refined.core_hat, core_hat, rtol=1e-5, atol=1e-5)
    slack = 1e-5 * max(refined.errors[0], objective.error(torch.zeros_like(core_hat)))
    assert objective.error(core_hat) == pytest.approx(refined.errors[-1], rel=1e-3, abs=slack)


@pytest.fixture(scope="module")
def groupwise() -> tuple[Objective, Tensor]:
    """Correlated inputs, and a codebook of k-means per group."""
    core = normal(512, 64, seed=0)
    basis = torch.linalg.qr(normal(64, 64, seed=1).double()).Q
    spectrum = torch.arange(1, 65, dtype=torch.float64) ** -1.25
    points = core.T.reshape(16, 4, 512).contiguous()
    books = kmeans(points, K=64, spec=KMeansSpec(iterations=10, tail=2), seed=0).codebooks
    return objective_of(core, ((basis * spectrum) @ basis.T).float(), d=4), books


def test_codebooks_after_codes_after_codebooks(groupwise: tuple[Objective, Tensor]) -> None:
    objective, books = groupwise
    codes = assign(objective, books).codes
    once = update_codebooks(objective, codes, books).errors
    refined = refine(objective, codes, books, rounds=2)
    assert once[-1] < 0.92 * once[0]
    assert refined.errors[-1] < 0.99 * once[-1]
    assert objective.error(refined.core_hat) == pytest.approx(refined.errors[-1], rel=1e-4)


def test_fresh_codes_leave_the_minimum_of_refinement(groupwise: tuple[Objective, Tensor]) -> None:
    objective, books = groupwise
    refined = refine(objective, assign(objective, books).codes, books, rounds=6)
    relearned = relearn(objective, books, rounds=4)
    assert relearned.errors[-1] < 0.98 * refined.errors[-1]
    assert objective.error(relearned.core_hat) == pytest.approx(relearned.errors[-1], rel=1e-4)


def test_sums_of_integers_are_those_of_floats() -> None:
    codes = torch.randint(0, 40, (5000,), generator=torch.Generator().manual_seed(0))
    for scale in (1e-20, 1.0, 1e20):
        values = normal(3, 5000, seed=0) * scale
        exact = torch.zeros(40, 3, dtype=torch.float64).index_add_(0, codes, values.T.double())
        for sums in (
            normal_equations._integer_sums(values, codes, 40),
            normal_equations._scatter(values, codes, 40),
        ):
            torch.testing.assert_close(sums, exact, rtol=1e-9, atol=1e-9 * scale)
