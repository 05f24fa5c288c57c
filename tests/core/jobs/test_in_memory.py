"""quantize_: one line for any torch module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpq import QuantSpec, quantize_
from dpq_core.data.statistics import collect
from dpq_core.errors import SpecError
from dpq_core.methods.output_aware import InputStatistics
from dpq_core.methods.quantize import quantize
from dpq_core.runtime import PQConv2d, PQEmbedding, PQLinear
from dpq_core.spec import Override
from dpq_core.tensor.partition import Partition

SPEC = QuantSpec.preset(2).replace(K=16, kmeans={"iterations": 3, "tail": 1})


class Model(nn.Module):
    """A table that is also the head, a convolution, a layer used twice, a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(128, 64)
        self.conv = nn.Conv2d(16, 32, 3)
        self.first = nn.Linear(64, 96)
        self.again = self.first
        self.small = nn.Linear(8, 8)
        self.head = nn.Linear(64, 128, bias=False)
        self.head.weight = self.table.weight


def test_every_large_module_is_replaced_as_the_engine_would():
    torch.manual_seed(0)
    model = Model()
    dense = model.first.weight.detach().clone()
    report = quantize_(model, SPEC)
    assert set(report) == {"table", "conv", "first"}
    assert isinstance(model.table, PQEmbedding)
    assert isinstance(model.conv, PQConv2d)
    assert isinstance(model.first, PQLinear)
    assert type(model.small) is nn.Linear
    p = Partition.of(tuple(dense.shape), model.first.weight.partition.layout, SPEC)
    expected = quantize(dense, p, SPEC, "first.weight")
    assert torch.equal(model.first.weight.decode(torch.float32), expected.pq.decode())
    assert report["first"].nbytes == expected.pq.nbytes
    assert report["first"].relative_error == expected.relative_error


def test_what_was_shared_stays_shared():
    model = Model()
    quantize_(model, SPEC)
    assert model.head.weight is model.table.weight
    assert model.again.weight is model.first.weight
    assert not any(p.requires_grad for p in model.head.parameters())


def test_filter_and_overrides_decide():
    model = Model()
    report = quantize_(
        model,
        SPEC,
        filter=lambda path, module: isinstance(module, nn.Linear),
        overrides=[Override("first.*", {"d": 2}), Override("head.*", None)],
    )
    assert set(report) == {"first", "small"}
    assert report["first"].spec.d == 2
    assert type(model.head) is nn.Linear


def test_progress_ends_with_everything():
    seen = []
    quantize_(Model(), SPEC, progress=lambda *state: seen.append(state))
    assert seen[-1][1] == seen[-1][2] > 0


def test_nan_is_refused_with_the_name_of_the_weight():
    model = Model()
    with torch.no_grad():
        model.first.weight[0, 0] = torch.nan
    with pytest.raises(SpecError, match=r"first\.weight"):
        quantize_(model, SPEC)


@pytest.mark.slow
def test_statistics_are_taken_as_collected_or_as_matrices():
    spec = SPEC.replace(assignment={"method": "ldlq+icm"})
    data = torch.randn(256, 8) @ torch.randn(8, 64)
    dense = nn.Linear(64, 96)
    found = collect(nn.ModuleDict({"fc": dense}), ["fc"], lambda: dense(data))
    lost = []
    known = {"fc": InputStatistics(hessian=found["fc"].hessian)}
    for statistics in (None, known, found):
        model = nn.ModuleDict({"fc": nn.Linear(64, 96)})
        model.fc.load_state_dict(dense.state_dict())
        choice = spec if statistics else SPEC
        quantize_(model, choice, statistics=statistics)
        with torch.no_grad():
            lost.append(float((model.fc(data) - dense(data)).square().mean()))
    assert lost[1] == lost[2] < 0.6 * lost[0]


def test_unknown_names_of_the_package_are_errors():
    import dpq_core

    with pytest.raises(AttributeError, match="nonsense"):
        dpq_core.nonsense  # noqa: B018
