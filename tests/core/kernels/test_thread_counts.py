"""What is stored for a weight does not depend on the number of threads, with data or without."""

from __future__ import annotations

import pytest
import torch

from dpq_core.data.sequential.reference import Drift
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.statistics.moment import Moment
from dpq_core.methods.assignment import hessian
from dpq_core.methods.output_aware import InputStatistics, corrected
from dpq_core.methods.quantize import quantize
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Layout, Partition

pytestmark = pytest.mark.portable

COLS = 256
"""Columns enough that products of matrices and factorisations are shared out to threads."""

QUICK = {"iterations": 2, "tail": 1}
DATA = {"method": "ldlq+icm"}
SPECS = {
    "rotated": QuantSpec(d=4, K=16, transform="rht"),
    "reordered": QuantSpec(d=4, K=16, scope="subspace", permute=True),
    "stages": QuantSpec(d=8, K=16, stages=2),
    "data": QuantSpec(d=4, K=16).replace(assignment=DATA),
    "rotated data": QuantSpec(d=8, K=16, transform="rht").replace(assignment=DATA),
    "data along outputs": QuantSpec(d=4, K=16, orientation="output").replace(assignment=DATA),
}


@pytest.fixture
def on_threads():
    """Calls a function on one, two and three threads; gives the results."""
    before = torch.get_num_threads()

    def call(function):
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(function())
        return found

    yield call
    torch.set_num_threads(before)


def second_moment():
    generator = torch.Generator().manual_seed(1)
    moment = Moment(COLS)
    moment.update(torch.randn(1200, COLS, generator=generator).cumsum(dim=1) / 8)
    return moment.mean()


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_same_bytes_for_any_number_of_threads(spec, on_threads):
    spec = spec.replace(kmeans=QUICK)
    weight = torch.randn(96, COLS, generator=torch.Generator().manual_seed(0))
    partition = Partition.of(tuple(weight.shape), Layout.LINEAR, spec)

    def stored():
        with_data = spec.assignment.method != "l2"
        statistics = InputStatistics(hessian=second_moment()) if with_data else None
        return quantize(weight, partition, spec, "w", statistics=statistics).pq.parts()

    one, *others = on_threads(stored)
    for parts in others:
        assert [name for name in one if not torch.equal(parts[name], one[name])] == []


def test_a_second_moment_is_collected_and_factored_alike_on_any_threads(on_threads):
    """LAPACK promises no such thing: its factorisations get one thread."""

    def factors():
        moment = second_moment()
        return moment, hessian.cholesky(moment + 1e-2 * torch.eye(COLS))

    one, *others = on_threads(factors)
    for parts in others:
        assert all(torch.equal(a, b) for a, b in zip(one, parts, strict=True))


@pytest.mark.parametrize("cols", [1, 16, 64, 320])
def test_sums_over_many_rows_are_alike_on_any_threads(cols, on_threads):
    """BLAS shares out the rows of products with few columns, in as many parts as threads."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 1536, cols, generator=generator)
    y = x + torch.randn(x.shape, generator=generator) / 8

    def sums():
        moment, drift = Moment(cols), Drift(LayerInput(layout=Layout.LINEAR, cols=cols), 4096, 0)
        moment.update(x[0])
        drift.add(x, y)
        return moment.mean(), drift.mean()

    one, *others = on_threads(sums)
    for parts in others:
        assert all(torch.equal(a, b) for a, b in zip(one, parts, strict=True))


def test_weights_make_up_for_drift_alike_on_any_threads(on_threads):
    weight = torch.randn(96, COLS, generator=torch.Generator().manual_seed(0))
    drift = torch.randn(COLS, COLS, generator=torch.Generator().manual_seed(2))
    statistics = InputStatistics(hessian=second_moment(), drift=drift)
    one, *others = on_threads(lambda: corrected(weight, statistics, 0.01))
    assert all(torch.equal(other, one) for other in others)
