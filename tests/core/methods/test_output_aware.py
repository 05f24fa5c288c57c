"""quantize() with statistics: the output of the layer is what is reconstructed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import specs_up_to

from dpq_core.errors import SpecError
from dpq_core.methods import output_aware
from dpq_core.methods.assignment.hessian import Hessian
from dpq_core.methods.data_free import QuantizationTask
from dpq_core.methods.output_aware import InputStatistics, corrected, point_weights
from dpq_core.methods.quantize import quantize
from dpq_core.spec import ASSIGNMENTS, AssignmentSpec, QuantSpec
from dpq_core.tensor.basis.frame import Frame
from dpq_core.tensor.partition import Layout, Partition

pytestmark = pytest.mark.portable

FAST = {"iterations": 4, "tail": 1}
SPECS = {
    "pq": QuantSpec(d=4, K=64, scope="subspace"),
    "shared": QuantSpec(d=4, K=64, scope="tensor"),
    "stages": QuantSpec(d=8, K=16, scope="tensor", stages=2),
    "pool": QuantSpec(d=4, K=64, scope="subspace").replace(pool={"method": "wkmeans", "size": 200}),
    "int8": QuantSpec(d=4, K=64, scope="tensor", codebook_dtype="int8"),
    "rht": QuantSpec(d=4, K=64, scope="tensor", transform="rht"),
    "permuted": QuantSpec(d=4, K=64, scope="tensor", permute=True, group_scale=True),
    "outputs": QuantSpec(d=4, K=64, scope="tensor", orientation="output"),
}


def layer(rows: int = 192, cols: int = 64, power: float = 1.3, seed: int = 0):
    """A weight, and the second moment of correlated inputs: a power law in random directions."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    axes = torch.linalg.qr(torch.randn(cols, cols, generator=generator))[0]
    return weight, axes @ torch.diag(torch.arange(1.0, cols + 1) ** -power) @ axes.T


def run(weight, spec, statistics=None):
    p = Partition.of(tuple(weight.shape), Layout.LINEAR, spec.replace(kmeans=FAST))
    return quantize(weight, p, spec.replace(kmeans=FAST), "w", statistics=statistics)


def output_error(weight, result, hessian):
    wrong = weight - result.pq.decode()
    return float((wrong @ hessian * wrong).sum() / (weight @ hessian * weight).sum())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_output_error_falls_whatever_the_parts(spec):
    weight, hessian = layer()
    plain = output_error(weight, run(weight, spec), hessian)
    spec = spec.replace(assignment={"method": "ldlq+icm"})
    found = run(weight, spec, InputStatistics(hessian=hessian))
    assert output_error(weight, found, hessian) < 0.75 * plain
    assert list(found.output_errors) == sorted(found.output_errors, reverse=True)


def test_the_reported_error_is_that_of_the_stored_weight():
    weight, hessian = layer()
    spec = SPECS["permuted"].replace(assignment={"method": "ldlq+icm", "damping": 0.01})
    found = run(weight, spec, InputStatistics(hessian=hessian))
    damped = Hessian.of(hessian, width=1, damping=0.01)
    matrix = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    assert damped.scale == pytest.approx(float(hessian.diagonal().mean()))
    error = output_error(weight, found, matrix)  # D / (1 - D) for D: rows keep their length
    assert error / (1 + error) == pytest.approx(found.output_errors[-1], rel=0.03)
    along = ((weight @ matrix) * found.pq.decode()).sum(1) / ((weight @ matrix) * weight).sum(1)
    torch.testing.assert_close(along, torch.ones(192), rtol=2e-3, atol=0)


@pytest.mark.parametrize("method", ASSIGNMENTS)
def test_every_method_is_at_least_as_good_as_the_one_before(method):
    weight, hessian = layer()
    spec = SPECS["shared"].replace(assignment={"method": method, "updates": 0})
    error = output_error(weight, run(weight, spec, InputStatistics(hessian=hessian)), hessian)
    nearest = output_error(weight, run(weight, SPECS["shared"]), hessian)
    bound = {"l2": 1.1, "blockdiag": 1.0, "icm": 0.75, "ldlq": 0.7, "ldlq+icm": 0.65}
    assert error < bound[method] * nearest


def test_without_statistics_every_method_is_l2():
    weight, _ = layer()
    plain = run(weight, SPECS["shared"])
    for method in ASSIGNMENTS:
        other = run(weight, SPECS["shared"].replace(assignment={"method": method}))
        assert torch.equal(other.pq.decode(), plain.pq.decode())
        assert other.output_errors == ()


def test_rows_that_count_more_are_learned_better():
    weight, _ = layer(rows=256)
    counts = torch.ones(256)
    counts[:32] = 1000
    spec = SPECS["shared"].replace(K=16, row_scale=False)
    error = {
        name: (weight - run(weight, spec, known).pq.decode())[:32].square().mean()
        for name, known in (("none", None), ("counts", InputStatistics(row_weight=counts)))
    }
    assert error["counts"] < 0.95 * error["none"]


def task_and_frame(shape, spec, **frame):
    p = Partition.of(shape, Layout.LINEAR, spec)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    task = QuantizationTask(
        subvectors=p.to_subvectors(weight), partition=p, spec=spec, seed=0, name="w"
    )
    return task, Frame(**frame)


@pytest.mark.parametrize("orientation", ["input", "output"])
def test_subvectors_count_by_the_square_of_their_scale_and_the_mean_of_their_inputs(orientation):
    """By definition: |scale_r|^2 H_cc per weight, its mean within a subvector, 1 on average."""
    shape = (6, 9) if orientation == "input" else (9, 6)  # 4 does not divide 9: a pad
    spec = QuantSpec(d=4, K=8, scope="tensor", orientation=orientation)
    _, hessian = layer(cols=shape[1])
    scale = torch.linspace(0, 2, shape[0])  # a row of zeros is divided by 1
    counts = torch.arange(1.0, shape[0] + 1)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(3))
    task, frame = task_and_frame(shape, spec, row_scale=scale, permutation=order)
    known = InputStatistics(hessian=hessian, row_weight=counts)
    squares = torch.where(scale > 0, scale, torch.ones(()))[:, None].square()
    every = counts[:, None] * squares * hessian.diagonal()[order]  # [rows, cols]
    cut = every if orientation == "input" else every.T
    means = torch.stack([part.mean(1) for part in cut.split(4, dim=1)])  # the last one is short
    found = point_weights(task, frame, known)
    torch.testing.assert_close(found, means / means.mean())
    plain = point_weights(task, Frame(), InputStatistics(row_weight=counts))
    alone = counts[:, None].expand(shape) if orientation == "input" else counts.expand(6, 9)
    means = torch.stack([part.mean(1) for part in alone.split(4, dim=1)])
    torch.testing.assert_close(plain, means / means.mean())


def test_without_statistics_or_with_silent_inputs_subvectors_count_alike():
    task, frame = task_and_frame((6, 8), SPECS["pq"])
    assert point_weights(task, frame, InputStatistics()) is None
    assert point_weights(task, frame, InputStatistics(hessian=torch.zeros(8, 8))) is None
    negative = torch.eye(8) - 1.5 * torch.diag(torch.arange(8) == 2).float()  # by rounding
    found = point_weights(task, frame, InputStatistics(hessian=negative))
    assert float(found.min()) >= 0


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    specs_up_to(d=6, K=32),
    st.sampled_from(ASSIGNMENTS),
    st.integers(0, 30),
)
def test_any_spec_takes_statistics_of_any_rank(shape, spec, method, rank):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(rank))
    inputs = torch.randn(rank, shape[1], generator=torch.Generator().manual_seed(1))
    hessian = inputs.T @ inputs / max(rank, 1)
    spec = spec.replace(assignment=AssignmentSpec(method=method, updates=1))
    found = run(weight, spec, InputStatistics(hessian=hessian))
    assert torch.isfinite(found.pq.decode()).all()
    errors = found.output_errors
    assert all(after <= before + 1e-5 for before, after in itertools.pairwise(errors))


# -- the drift of inputs --------------------------------------------------------------------------


def drifted(samples=400, cols=12, noise=0.5):
    """Inputs in the uncompressed model, inputs now, and their statistics."""
    draw = torch.Generator().manual_seed(3)
    before = torch.randn(samples, cols, generator=draw, dtype=torch.float64)
    now = before + noise * torch.randn(samples, cols, generator=draw, dtype=torch.float64)
    hessian = (now.T @ now / samples).float()
    drift = ((before - now).T @ now / samples).float()
    return before, now, InputStatistics(hessian=hessian, drift=drift)


def test_the_whole_step_is_the_least_squares_solution(monkeypatch):
    monkeypatch.setattr(output_aware, "DRIFT_SHARE", 1.0)
    before, now, statistics = drifted()
    weight = torch.randn(5, 12)
    solution = torch.linalg.lstsq(now, before @ weight.double().T).solution.T
    found = corrected(weight, statistics, 1e-9)
    torch.testing.assert_close(found.double(), solution, rtol=1e-4, atol=1e-4)


def test_a_part_of_the_step_brings_outputs_nearer_to_the_original_ones():
    before, now, statistics = drifted()
    weight = torch.randn(5, 12)

    def error(matrix):
        return float((before @ weight.double().T - now @ matrix.double().T).square().sum())

    assert error(corrected(weight, statistics, 0.01)) < 0.95 * error(weight)


def test_without_drift_the_weight_stays():
    weight = torch.randn(5, 12)
    _, _, statistics = drifted(noise=0.0)
    assert corrected(weight, InputStatistics(hessian=statistics.hessian), 0.01) is weight
    torch.testing.assert_close(corrected(weight, statistics, 0.01), weight)


def test_the_reported_error_is_against_the_original_weight():
    _, _, statistics = drifted(noise=2.0)
    weight = torch.randn(32, 12)
    spec = QuantSpec(d=2, K=16, assignment=AssignmentSpec(method="ldlq+icm"))
    result = run(weight, spec, statistics)
    error = (result.pq.decode() - weight).square().sum() / weight.square().sum()
    assert result.relative_error == pytest.approx(float(error), rel=1e-5)
    assert result.relative_error > run(weight, spec).relative_error


@pytest.mark.parametrize("columns", [1, 5, 100])
def test_the_step_does_not_depend_on_how_the_drift_is_cut(monkeypatch, columns):
    _, _, statistics = drifted()
    weight = torch.randn(5, 12)
    expected = corrected(weight, statistics, 0.01)
    monkeypatch.setattr(output_aware, "_COLUMNS", columns)
    torch.testing.assert_close(corrected(weight, statistics, 0.01), expected)


def test_an_indefinite_matrix_is_damped_more_as_everywhere_and_refused_where_that_is_not_enough():
    drift, weight = torch.randn(12, 12), torch.randn(5, 12)
    hessian = torch.diag(torch.tensor([1.0] * 11 + [-0.5]))
    found = corrected(weight, InputStatistics(hessian=hessian, drift=drift), 0.01)
    damped = hessian.diagonal() + (0.01 + 1.111111) * hessian.diagonal().mean()
    step = output_aware.DRIFT_SHARE * weight @ drift / damped
    torch.testing.assert_close(found, weight + step)
    hessian[-1, -1] = -3
    with pytest.raises(SpecError, match="not positive semidefinite"):
        corrected(weight, InputStatistics(hessian=hessian, drift=drift), 0.01)
