"""E-steps of quantized weights: targets, limits, dead codewords."""

from __future__ import annotations

import pytest
import torch
from builders import random_pq
from calibration_task import SPEC, Memory, Regression
from torch import nn

from dpq_core.calibrate.dead_codewords.codewords import codes_of
from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.estep import WeightsEStep, core_of, total
from dpq_core.calibrate.gradient import dense, newton_steps
from dpq_core.calibrate.layers import quantized_layers, snapshot, targets
from dpq_core.calibrate.moments import Moments
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import PoolSpec

FORMS = [
    {},
    {"row_scale": False},
    {"group_scale": True, "permute": True},
    {"transform": "rht"},
    {"orientation": "output"},
    {"stages": 2},
    {"pool": PoolSpec(method="wkmeans", size=40)},
]


def name_of(changes) -> str:
    return "+".join(changes) or "plain"


def make(task: Regression, **changes) -> WeightsEStep:
    settings = CalibrateSettings(**changes)
    read = targets(Memory(task.teacher()))
    return WeightsEStep(task.student, quantized_layers(task), read, settings, interval=100)


def seen(task: Regression, estep: WeightsEStep) -> None:
    def forward() -> float:
        with torch.no_grad():
            return float(task.loss(task.train_batch(0)))

    estep.collect(forward, Workers())


def output_errors(task: Regression) -> list[float]:
    """E_out of every layer on the inputs that it sees now, against the teacher's weight."""
    found, handles = [], []
    for path, module in task.student.named_modules():
        if isinstance(module, PQLinear):
            original = task.teacher().get_submodule(path).weight

            def hook(module, args, original=original):
                wrong = original - module.weight.decode()
                found.append(float((args[0] @ wrong.T).square().sum()))

            handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        task.student(task.train_batch(0)["x"])
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("changes", FORMS, ids=name_of)
def test_the_core_is_what_the_frame_leaves_from(changes):
    pq = random_pq((24, 32), SPEC.replace(**changes))
    frame = PQWeight.from_pq(pq).frame()
    torch.testing.assert_close(core_of(frame, pq.decode()), pq.core(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", FORMS, ids=name_of)
@pytest.mark.parametrize("limit", [1.0, 0.02])
def test_a_step_lowers_the_first_layers_output_error_within_its_limit(changes, limit):
    """The first layer: its inputs do not change when others do."""
    task = Regression(spec=SPEC.replace(**changes))
    estep = make(task)
    seen(task, estep)
    before, codes = output_errors(task), snapshot(task.student)
    stats = estep.step(limit, 0.1)
    assert output_errors(task)[0] < before[0]
    layers = quantized_layers(task)
    moved = 0
    for layer in layers:
        new, p = codes_of(layer.weight), layer.weight.partition
        old = PQWeight(p, layer.weight.spec)
        old.codes.copy_(codes[f"{layer.path}.weight.codes"])
        changed = int((codes_of(old) != new).sum())
        assert changed <= limit * new.numel()
        moved += changed
    assert stats.changed == moved > 0
    assert stats.total == sum(codes_of(layer.weight).numel() for layer in layers)


def test_codewords_stand_still_in_a_step():
    task = Regression()
    estep = make(task)
    seen(task, estep)
    before = snapshot(task.student)
    estep.step(1.0, 0.0)
    now = snapshot(task.student)
    assert {n for n in now if not torch.equal(now[n], before[n])} == {
        f"{layer.path}.weight.codes" for layer in quantized_layers(task)
    }


@pytest.mark.parametrize("changes", FORMS, ids=name_of)
def test_the_warm_start_lowers_the_output_error_and_keeps_codes(changes):
    task = Regression(spec=SPEC.replace(**changes))
    estep = make(task)
    seen(task, estep)
    before, state = output_errors(task), snapshot(task.student)
    estep.solve()
    assert output_errors(task)[0] < before[0]
    now = snapshot(task.student)
    changed = {name.rpartition(".")[2] for name in now if not torch.equal(now[name], state[name])}
    assert changed == {"pool" if "pool" in changes else "codebooks"}


def test_kinds_differ():
    """l2 is the nearest codeword; blockdiag ignores what other groups got wrong."""
    codes = {}
    for kind in ("icm", "blockdiag", "l2"):
        task = Regression()
        estep = make(task, estep=kind)
        seen(task, estep)
        estep.step(1.0, 0.0)
        codes[kind] = torch.cat([codes_of(x.weight).flatten() for x in quantized_layers(task)])
        if kind == "l2":
            layer = quantized_layers(task)[0]
            core = core_of(layer.weight.frame(), task.teacher().get_submodule("0.up").weight)
            points = layer.weight.partition.to_subvectors(core).mT
            nearest = torch.cdist(points, layer.weight.books()).argmin(-1)
            assert torch.equal(codes_of(layer.weight).long(), nearest)
    assert not torch.equal(codes["icm"], codes["blockdiag"])
    assert not torch.equal(codes["l2"], codes["blockdiag"])


def test_a_layer_that_never_ran_keeps_its_codes():
    task = Regression()
    estep = make(task)
    before = snapshot(task.student)
    stats = estep.step(1.0, 0.0)
    now = snapshot(task.student)
    assert stats.changed == 0
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_statistics_fade():
    model = nn.Sequential(nn.Linear(4, 4))
    moments = Moments(model, ["0"], rho=0.5)
    rows = [torch.full((n, 4), float(n)) for n in (1, 2, 3)]
    for x in rows:
        moments.collect(lambda x=x: model(x), Workers())
    weights = [0.25 * 1, 0.5 * 2, 1.0 * 3]  # decay times rows
    expected = sum(w * n**2 for w, n in zip(weights, (1, 2, 3), strict=True)) / sum(weights)
    found = moments.of("0").hessian(4, torch.device("cpu"))
    torch.testing.assert_close(found, torch.full((4, 4), expected))
    again = Moments(model, ["0"], rho=0.5)
    again.load(moments.tensors())
    for m in (moments, again):
        m.collect(lambda: model(rows[0]), Workers())
    torch.testing.assert_close(again.of("0").moment, moments.of("0").moment, rtol=0, atol=0)


class OneLayer(Regression):
    """The distance of a single layer, which is a quadratic of its weight."""

    def __init__(self) -> None:
        super().__init__(1)
        self._teacher = self._teacher[0].up
        self.student = nn.Sequential(self.student[0].up)

    def tensor_name(self, path: str) -> str:
        return "weight"


def test_the_newton_target_of_a_quadratic_is_its_minimum():
    task = OneLayer()
    moments = Moments(task.student, ["0"], rho=0)
    batches = [(task.train_batch(i), 1.0) for i in range(4)]

    def forward() -> None:
        for batch, _ in batches:
            task.student(batch["x"])

    moments.collect(forward, Workers())
    layers = quantized_layers(task)
    before = layers[0].weight.decode().detach()
    found = newton_steps(task.student, layers, moments, task.loss, batches, Workers())["0"] + before
    original = task.teacher().weight.detach()
    x = torch.cat([batch["x"] for batch, _ in batches])
    left = (x @ (found - original).T).square().sum() / (x @ (before - original).T).square().sum()
    assert float(left) < 0.01


def test_dense_weights_come_and_go():
    task = Regression()
    layers = quantized_layers(task)
    modules = dict(task.student.named_modules())
    trained = {name for name, p in task.student.named_parameters() if p.requires_grad}
    x = task.train_batch(0)["x"]
    expected = task.student(x)
    with dense(task.student, layers[:2]) as weights:
        torch.testing.assert_close(task.student(x), expected)
        assert set(weights) == {layer.path for layer in layers[:2]}
        grads = {id(p) for p in task.student.parameters() if p.requires_grad}
        assert grads == {id(p) for p in weights.values()}
    assert dict(task.student.named_modules()) == modules
    assert {name for name, p in task.student.named_parameters() if p.requires_grad} == trained


def test_the_total_of_nothing():
    assert total([]).total == 0
