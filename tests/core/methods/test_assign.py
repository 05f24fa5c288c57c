"""Hessian-aware assignment: oracles, monotonicity, equivalences, and the gain that it is for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
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

from dpq_core.errors import SpecError
from dpq_core.methods.assignment import objective as objective_module
from dpq_core.methods.assignment import sweeps
from dpq_core.methods.assignment.assign import AssignResult, assign
from dpq_core.methods.assignment.hessian import Hessian
from dpq_core.methods.assignment.objective import Objective
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.spec import ASSIGNMENTS, KMeansSpec

pytestmark = pytest.mark.portable


def true_error(objective: Objective, core_hat: Tensor, sizes: dict[str, Any]) -> float:
    """Of a layer made by ``layer(**sizes)``, in float64."""
    return output_error(objective.core, core_hat, metric_of(sizes), objective.row_weight)


def metric_of(sizes: dict[str, Any]) -> Tensor:
    """Damped H of a layer made by ``layer(**sizes)``, float64."""
    H = second_moment(sizes["cols"], sizes.get("rank", 1000), sizes.get("seed", 0) + 2)
    return damped(H, sizes.get("damping", 0.01))


SINGULAR = {
    "rows": 1,
    "cols": 8,
    "d": 1,
    "sharing": 2,
    "stages": 1,
    "orientation": "input",
    "damping": 0.0,
    "weighted": False,
}
"""Sizes of layers whose H is singular, where rounding once looked like an error."""


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@example({**SINGULAR, "K": 4, "rank": 2, "seed": 168}, "ldlq")
@example({**SINGULAR, "K": 5, "rank": 1, "seed": 169}, "ldlq")
@given(layers, st.sampled_from(ASSIGNMENTS))
def test_the_error_never_rises_and_is_what_it_says(sizes: dict[str, Any], method: str) -> None:
    objective, books = layer(**sizes)
    result = assign(objective, books, method=method, sweeps=3)
    for before, after in itertools.pairwise(result.errors):
        assert after <= before
    assert len(result.errors) == (4 if "icm" in method else 1)
    torch.testing.assert_close(
        result.core_hat, decode(objective, result.codes, books), rtol=0, atol=1e-6
    )
    # float32 sums of terms as large as the first error, or larger ones that cancel where H is
    # singular: errors are fed back without bound then
    wrong = (objective.core - result.core_hat).double().abs()
    terms = output_error(
        wrong, torch.zeros_like(wrong), metric_of(sizes).abs(), objective.row_weight
    )
    slack = 1e-4 * max(result.errors[0], 1e-9) + 1e-7 * terms
    truth = true_error(objective, result.core_hat, sizes)
    assert result.errors[-1] == pytest.approx(truth, rel=1e-3, abs=slack)
    assert objective.error(result.core_hat) == pytest.approx(truth, rel=1e-3, abs=slack)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(layers)
def test_sweeps_lower_the_true_error_from_any_codes(sizes: dict[str, Any]) -> None:
    objective, books = layer(**sizes)
    shape = (sizes["stages"] * objective.grouping.groups, objective.grouping.points)
    generator = torch.Generator().manual_seed(sizes["seed"])
    codes = torch.randint(0, sizes["K"], shape, dtype=torch.int32, generator=generator)
    start = decode(objective, codes, books)
    before = true_error(objective, start, sizes)
    result = assign(objective, books, method="icm", sweeps=1, codes=codes)
    assert result.errors[0] == pytest.approx(before, rel=1e-3, abs=1e-6)
    assert true_error(objective, result.core_hat, sizes) <= before * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize("orientation", ["input", "output"])
def test_nothing_moves_once_no_single_code_can_gain(orientation: str) -> None:
    sizes = {"rows": 8, "cols": 12, "d": 2, "K": 5, "orientation": orientation, "weighted": True}
    objective, books = layer(**sizes)
    result = assign(objective, books, method="icm", sweeps=50)
    assert result.errors[-1] == result.errors[-2]
    best = true_error(objective, result.core_hat, sizes)
    for group, point, code in itertools.product(
        range(objective.grouping.groups), range(objective.grouping.points), range(5)
    ):
        other = result.codes.clone()
        other[group, point] = code
        changed = decode(objective, other, books)
        assert true_error(objective, changed, sizes) >= best * (1 - 1e-5)


def test_close_to_the_best_of_all_codes() -> None:
    """One code per group of each row: 4^4 combinations, tried one by one."""
    sizes = {"rows": 40, "cols": 8, "d": 2, "K": 4, "rank": 12}
    objective, books = layer(**sizes)
    H = damped(second_moment(8, 12, 2), 0.01)
    every = torch.cartesian_prod(*[torch.arange(4)] * 4)  # [256, 4]
    values = torch.cat([books[j][every[:, j]] for j in range(4)], dim=1).double()
    wrong = objective.core.double()[:, None] - values
    optimum = torch.einsum("rki,ij,rkj->rk", wrong, H, wrong).amin(1)
    errors = {m: assign(objective, books, method=m, sweeps=5).errors[-1] for m in ASSIGNMENTS}
    floor = float(optimum.sum())
    assert min(errors.values()) >= floor * (1 - 1e-4)
    assert errors["ldlq+icm"] <= 1.25 * floor
    assert errors["ldlq+icm"] < errors["ldlq"] < errors["l2"]
    assert errors["icm"] < errors["blockdiag"] < errors["l2"]


@settings(deadline=None, max_examples=40)
@given(layers, st.sampled_from(ASSIGNMENTS))
def test_codewords_are_found_again(sizes: dict[str, Any], method: str) -> None:
    # With less damping float32 cannot tell codewords that differ where there is no data.
    sizes |= {"stages": 1, "K": max(2, sizes["K"]), "damping": max(0.01, sizes["damping"])}
    objective, books = layer(**sizes)
    books += 20 * torch.arange(books.shape[1])[:, None]  # far apart
    shape = (objective.grouping.groups, objective.grouping.points)
    generator = torch.Generator().manual_seed(sizes["seed"])
    codes = torch.randint(0, sizes["K"], shape, dtype=torch.int32, generator=generator)
    core = decode(objective, codes, books)
    planted = objective_of(
        core,
        objective.hessian,
        **{name: sizes[name] for name in ("d", "sharing", "stages", "orientation")},
    )
    result = assign(planted, books, method=method)
    assert torch.equal(result.codes, codes)
    assert torch.equal(result.core_hat, core)


def identity(core: Tensor, d: int, orientation: str = "input", **cut: int) -> Objective:
    eye = torch.eye(core.shape[1])
    return objective_of(core, eye, d=d, orientation=orientation, **cut)


@pytest.mark.parametrize("method", ASSIGNMENTS)
@pytest.mark.parametrize("orientation", ["input", "output"])
def test_with_white_inputs_every_method_is_nearest(orientation: str, method: str) -> None:
    core = normal(21, 22, seed=0)
    objective = identity(core, 4, orientation, sharing=2)
    books = normal(3, 16, 4, seed=1)
    result = assign(objective, books, method=method)
    plain = assign(objective, books, method="l2")
    assert torch.equal(result.codes, plain.codes)
    axis = core if orientation == "input" else core.T
    for j, group in enumerate(axis.split(4, dim=1)):  # the last group has one or two columns
        used = books[j // 2, :, : group.shape[1]]
        assert torch.equal(result.codes[j], torch.cdist(group, used).argmin(1).int())


@pytest.mark.parametrize("orientation", ["input", "output"])
def test_each_stage_encodes_what_is_left(orientation: str) -> None:
    core, books = normal(20, 20, seed=0), normal(2, 16, 4, seed=1)
    codes = assign(identity(core, 4, orientation, sharing=5, stages=2), books, method="l2").codes
    for j, left in enumerate((core if orientation == "input" else core.T).split(4, dim=1)):
        for stage in range(2):
            nearest = torch.cdist(left, books[stage]).argmin(1)
            assert torch.equal(codes[5 * stage + j], nearest.int())
            left = left - books[stage, nearest]


def test_with_independent_inputs_feedback_changes_nothing() -> None:
    core, books = normal(200, 24, seed=0), normal(6, 32, 4, seed=1)
    objective = objective_of(core, torch.diag(normal(24, seed=2).square()), d=4)
    fed_back = assign(objective, books, method="ldlq")
    independent = assign(objective, books, method="blockdiag")
    assert torch.equal(fed_back.codes, independent.codes)
    assert fed_back.errors[0] == pytest.approx(independent.errors[0], rel=1e-5)
    assert not torch.equal(fed_back.codes, assign(objective, books, method="l2").codes)


def reference_ldlq(objective: Objective, books: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """QuIP#'s BlockLDLQ with the metric D_j, one group after the other, float64.

    See docs/algorithms.md#assign-ldlq.
    """
    W, d, order = objective.core.double(), objective.grouping.d, objective.hessian.order.tolist()
    groups = [slice(g * d, (g + 1) * d) for g in order]
    columns = torch.cat([torch.arange(g.start, g.stop) for g in groups])
    lower = torch.linalg.cholesky(H[columns][:, columns])
    codes, values = torch.empty(len(order), len(W), dtype=torch.int32), torch.zeros_like(W)
    for k in reversed(range(len(order))):
        at = slice(k * d, (k + 1) * d)
        own = lower[at, at]
        unit = lower[at.stop :, at] @ torch.linalg.inv(own)
        rest = columns[at.stop :]
        target = W[:, groups[k]] + (W - values)[:, rest] @ unit
        book = books[order[k]].double()
        codes[order[k]] = torch.cdist(target @ own, book @ own).argmin(1)
        values[:, groups[k]] = book[codes[order[k]].long()]
    return codes, values


def test_feedback_is_what_the_paper_says() -> None:
    sizes = {"rows": 300, "cols": 40, "d": 4, "K": 16, "rank": 60}
    objective, books = layer(**sizes)
    codes, values = reference_ldlq(objective, books, damped(second_moment(40, 60, 2), 0.01))
    result = assign(objective, books, method="ldlq")
    assert float((result.codes == codes).float().mean()) > 0.995  # ties in float32
    assert result.errors[0] == pytest.approx(true_error(objective, values.float(), sizes), rel=1e-3)


@pytest.mark.parametrize("orientation", ["input", "output"])
@pytest.mark.parametrize("method", ["icm", "ldlq", "ldlq+icm"])
def test_blocks_and_chunks_change_nothing(
    method: str, orientation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"rows": 1200, "cols": 46, "d": 4, "K": 16, "rank": 60, "orientation": orientation}

    def run() -> AssignResult:
        objective, books = layer(**sizes)
        return assign(objective, books, method=method)

    monkeypatch.setattr(sweeps, "BLOCK", 1)
    unblocked = run()
    for block, chunk in ((12, 1 << 26), (46, 1 << 26), (128, 1)):
        monkeypatch.setattr(sweeps, "BLOCK", block)
        monkeypatch.setattr(objective_module, "CHUNK_FLOATS", chunk)  # 1: 1024 rows at a time
        other = run()
        assert other.errors == pytest.approx(unblocked.errors, rel=1e-4)
        assert float((other.codes == unblocked.codes).float().mean()) > 0.99


@pytest.mark.parametrize("method", ["icm", "ldlq", "ldlq+icm"])
def test_the_order_of_the_groups_does_not_matter(method: str) -> None:
    core, H, books = normal(100, 32, seed=0), second_moment(32, 50, 1), normal(8, 16, 4, seed=2)
    groups = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    columns = (groups[:, None] * 4 + torch.arange(4)).flatten()
    plain = assign(objective_of(core, H, d=4), books, method=method)
    moved = objective_of(core[:, columns], H[columns][:, columns], d=4)
    assert torch.equal(assign(moved, books[groups], method=method).codes, plain.codes[groups])


def test_large_inputs_are_decided_first() -> None:
    energies = torch.tensor([1.0, 1, 9, 9, 4, 4])
    order = Hessian.of(torch.diag(energies), width=2).order
    assert order.tolist() == [0, 2, 1]  # sweeps go from the last to the first


def correlated(alpha: float = 1.25) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated activations with a power-law spectrum, m=1024, n=256, d=4, K=256."""
    core = normal(1024, 256, seed=0)
    basis = torch.linalg.qr(normal(256, 256, seed=1).double()).Q
    spectrum = torch.arange(1, 257, dtype=torch.float64) ** -alpha
    points = core.T.reshape(64, 4, 1024).contiguous()
    books = kmeans(points, K=256, spec=KMeansSpec(iterations=20, tail=2), seed=0).codebooks
    return core, ((basis * spectrum) @ basis.T).float(), books


def test_correlated_activations() -> None:
    core, H, books = correlated()
    objective = objective_of(core, H, d=4)
    error = {
        m: output_error(core, assign(objective, books, method=m).core_hat, H) for m in ASSIGNMENTS
    }
    assert error["ldlq+icm"] <= 0.35 * error["l2"]
    assert error["ldlq+icm"] < error["ldlq"] < error["icm"] < error["blockdiag"] < error["l2"]


def test_a_limit_changes_the_codes_that_gain_most() -> None:
    sizes = {"rows": 30, "cols": 12, "d": 2, "K": 8, "rank": 20, "weighted": True}
    objective, books = layer(**sizes)
    start = assign(objective, books, method="l2")
    one = assign(objective, books, method="icm", codes=start.codes, limit=1 / 180, sweeps=3)
    assert int((one.codes != start.codes).sum()) == 1
    best = one.errors[-1]
    for group, point, code in itertools.product(range(6), range(30), range(8)):
        changed = start.core_hat.clone()
        changed[point, 2 * group : 2 * group + 2] = books[group, code]
        assert true_error(objective, changed, sizes) >= best * (1 - 1e-5)
    errors = []
    for limit in (0.0, 0.05, 0.3, 1.0):
        some = assign(objective, books, method="icm", codes=start.codes, limit=limit)
        assert int((some.codes != start.codes).sum()) <= limit * 180
        errors.append(some.errors[-1])
    assert errors[0] == pytest.approx(start.errors[0], rel=1e-6)
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 4


def test_a_limit_looks_at_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, books = layer(rows=1500, cols=8, d=2, K=4)
    codes = torch.zeros(4, 1500, dtype=torch.int32)
    whole = assign(objective, books, method="icm", codes=codes, limit=0.01)
    monkeypatch.setattr(objective_module, "CHUNK_FLOATS", 1)
    assert torch.equal(
        assign(objective, books, method="icm", codes=codes, limit=0.01).codes, whole.codes
    )
    assert 50 < int((whole.codes != 0).sum()) <= 60


@pytest.mark.parametrize("method", ASSIGNMENTS)
def test_columns_without_data(method: str) -> None:
    core, books = normal(20, 12, seed=0), normal(3, 8, 4, seed=1)
    H = second_moment(12, 30, 2)
    H[4:8] = H[:, 4:8] = 0
    dead = assign(objective_of(core, H, d=4), books, method=method)
    nearest = assign(identity(core, 4), books, method="l2")
    assert torch.equal(dead.codes[1], nearest.codes[1])  # nothing but the damping speaks
    nothing = assign(objective_of(core, torch.zeros(12, 12), d=4), books, method=method)
    assert torch.equal(nothing.codes, nearest.codes)


def test_row_weights_decide_where_subvectors_cross_rows() -> None:
    core = torch.tensor([[0.0], [0.0]])
    books = torch.tensor([[[0.0, 3.0], [2.0, 0.0]]])
    for weights, code in (((1.0, 1.0), 1), ((9.0, 1.0), 0)):
        objective = objective_of(
            core, torch.eye(1), d=2, orientation="output", row_weight=torch.tensor(weights)
        )
        assert assign(objective, books, method="ldlq").codes.tolist() == [[code]]


def test_row_weights_weigh_the_error_of_independent_rows() -> None:
    core, H, books = normal(9, 8, seed=0), second_moment(8, 20, 1), normal(2, 4, 4, seed=2)
    weights = normal(9, seed=3).square()
    weighted = assign(objective_of(core, H, d=4, row_weight=weights), books)
    assert torch.equal(weighted.codes, assign(objective_of(core, H, d=4), books).codes)
    truth = output_error(core, weighted.core_hat, damped(H, 0.01), weights)
    assert weighted.errors[-1] == pytest.approx(truth, rel=1e-4)


class EveryPair:
    """The best pair of codewords of two stages, found by trying all."""

    def __init__(self, books: Tensor) -> None:
        self.books = books  # [2, C, K, d]
        self.calls: list[tuple[torch.Size, torch.Size, int]] = []

    def __call__(self, targets: Tensor, metric: Tensor, group: int) -> Tensor:
        self.calls.append((targets.shape, metric.shape, group))
        first, second = self.books[:, group // 2]
        sums = first[:, None] + second
        wrong = targets[:, None, None] - sums
        costs = torch.einsum("rabi,ij,rabj->rab", wrong, metric, wrong).flatten(1)
        best = costs.argmin(1)
        return torch.stack([best // len(second), best % len(second)]).int()


def test_an_encoder_of_its_own() -> None:
    sizes = {"rows": 60, "cols": 22, "d": 4, "K": 8, "sharing": 2, "stages": 2}
    objective, books = layer(**sizes)
    encoder = EveryPair(books.view(2, 3, 8, 4))
    result = assign(objective, books, method="ldlq+icm", encoder=encoder)
    assert result.codes.shape == (12, 60)
    assert {call[2] for call in encoder.calls} == set(range(6))
    assert {call[:2] for call in encoder.calls} == {((60, 4), (4, 4))}
    greedy = assign(objective, books, method="ldlq+icm")
    assert result.errors[-1] < greedy.errors[-1]
    truth = true_error(objective, result.core_hat, sizes)
    assert result.errors[-1] == pytest.approx(truth, rel=1e-4)


def test_the_factors_give_the_matrix_back() -> None:
    hessian = Hessian.of(second_moment(22, 10, 0), width=4, damping=0.01)
    lower, metrics = hessian.feedback
    blocks = torch.block_diag(*[torch.ones(4, 4)] * 6)
    torch.testing.assert_close(blocks * lower, torch.eye(24))
    assert not lower.triu(4).any()
    product = lower.double() @ torch.block_diag(*metrics.double()) @ lower.T.double()
    torch.testing.assert_close(product.float(), hessian.matrix, rtol=1e-4, atol=1e-5)
    assert float(hessian.matrix.diagonal()[hessian.columns < 22].mean()) == pytest.approx(1.01)
    assert torch.equal(hessian.diagonal[2], hessian.matrix[8:12, 8:12])
    products = hessian.inverses.double() @ hessian.diagonal.double()
    torch.testing.assert_close(products.float(), torch.eye(4).expand(6, 4, 4), rtol=0, atol=1e-3)


def test_a_hessian_serves_several_layers() -> None:
    H, books = second_moment(12, 20, 0), normal(3, 8, 4, seed=1)
    shared = Hessian.of(H, width=4)
    for seed in (2, 3):
        core = normal(10, 12, seed=seed)
        once = assign(objective_of(core, shared, d=4), books)
        assert torch.equal(once.codes, assign(objective_of(core, H, d=4), books).codes)


def test_rounding_may_leave_negative_eigenvalues_but_no_more() -> None:
    almost = torch.ones(4, 4) + 2e-6 * torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    Hessian.of(almost, width=2, damping=0).feedback  # noqa: B018
    with pytest.raises(SpecError, match="not positive semidefinite; collect it again"):
        Hessian.of(torch.ones(4, 4) * -9 + 10 * torch.eye(4), width=2).feedback  # noqa: B018


@pytest.mark.parametrize(
    ("H", "message"),
    [
        (torch.eye(3)[:2], "a second moment is a square matrix, not \\[2, 3\\]"),
        (torch.eye(8) * torch.nan, "holds NaN, infinite or negative values"),
        (-torch.eye(8), "holds NaN, infinite or negative values"),
        (torch.eye(9), "of 9 columns in steps of 4 does not fit 8 columns in steps of 4"),
        (Hessian.of(torch.eye(8), width=2), "in steps of 2 does not fit 8 columns in steps of 4"),
    ],
)
def test_second_moments_that_do_not_fit(H: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        objective_of(normal(5, 8, seed=0), H, d=4)


def test_arguments_that_do_not_fit() -> None:
    objective, books = layer(rows=5, cols=8, d=4, K=3)
    with pytest.raises(SpecError, match="unknown assignment 'gptq'; choose one of l2, blockdiag"):
        assign(objective, books, method="gptq")
    with pytest.raises(
        SpecError, match=r"2 groups, 1 per codebook, in 1 stages need codebooks \[2, K, 4\]"
    ):
        assign(objective, books[:1])
    with pytest.raises(SpecError, match=r"codes must be \[2, 5\], not \[5, 2\]"):
        assign(objective, books, method="icm", codes=torch.zeros(5, 2, dtype=torch.int32))
    for extra in ({"codes": torch.zeros(2, 5, dtype=torch.int32)}, {"limit": 0.5}):
        with pytest.raises(SpecError, match=r"go with method icm, not with ldlq\+icm"):
            assign(objective, books, **extra)
    with pytest.raises(SpecError, match=r"row weights must be \[5\], not \[4\]"):
        objective_of(objective.core, torch.eye(8), d=4, row_weight=torch.ones(4))
    across, books = layer(rows=8, cols=5, d=4, K=3, orientation="output")
    with pytest.raises(SpecError, match="needs subvectors along the input axis"):
        assign(across, books, encoder=EveryPair(books[None]))
