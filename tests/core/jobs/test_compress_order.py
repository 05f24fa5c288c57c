"""Hidden units in the order that suits the consumer: the model of a stored order, without it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_blocks import Stack, Task

from dpq_core.artifact import Artifact
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.jobs import compress as compress_module
from dpq_core.jobs import hidden_order as compress_order
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.planning.plan import make_plan
from dpq_core.planning.planner import candidate_specs, plan_for_budget
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.run import Run
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import AssignmentSpec, KMeansSpec, Override, QuantSpec
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.checkpoint import SafetensorsCheckpoint
from dpq_core.tensor.hidden_axes import HiddenAxis, Producer
from dpq_core.tensor.partition import Layout
from dpq_core.tensor.pq_tensor import permutation_of

pytestmark = pytest.mark.slow  # whole runs of a job

WIDTH, BLOCKS = 32, range(3)
SPEC = QuantSpec(
    d=4,
    K=16,
    permute=True,
    kmeans=KMeansSpec(iterations=2, tail=1),
    assignment=AssignmentSpec(method="ldlq+icm"),
)
DOWN = [f"blocks.{i}.down.weight" for i in BLOCKS]


class Stored(TensorAdapter):
    name = "stacks"
    summary = "stacks of toy blocks in a .safetensors file"

    def open(self, source):
        return SafetensorsCheckpoint(source, [Path(source)])

    def select(self, name, shape):
        return Layout.LINEAR if len(shape) == 2 and name != "embed.weight" else None


class Free(Stored):
    def hidden_axes(self, checkpoint):
        for i in BLOCKS:
            made = [f"blocks.{i}.{n}.{k}" for n in ("gate", "up") for k in ("weight", "bias")]
            yield HiddenAxis(consumer=DOWN[i], producers=tuple(map(Producer, made)))


class StackTask(Task):
    fingerprint = "data"

    def __init__(self, source):
        model = Stack(WIDTH)
        model.load_state_dict(load_file(source))
        super().__init__(model)


class Bent(StackTask):
    """The model has made another weight of one consumer and of one producer."""

    def __init__(self, source):
        super().__init__(source)
        with torch.no_grad():
            self.student.blocks[1].down.weight.mul_(1.5)
            self.student.blocks[2].gate.weight.mul_(1.5)


@pytest.fixture(scope="module", autouse=True)
def _quick_search():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(basis, "SWAPS_PER_COLUMN", 4)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A stack whose hidden units differ in size, so that orders matter."""
    torch.manual_seed(0)
    model = Stack(WIDTH)
    with torch.no_grad():
        for block in model.blocks:
            block.down.weight *= torch.rand(2 * WIDTH) * 3
    path = tmp_path_factory.mktemp("source") / "stack.safetensors"
    save_file(model.state_dict(), path)
    return path


def run(adapter, source, out, *, task=None, spec=SPEC, overrides=(), **options):
    chosen = CompressOptions(
        probe=False, sequential=SequentialOptions(batches=4), **{"resume": False, **options}
    )
    return compress(
        adapter,
        str(source),
        out,
        spec,
        overrides,
        options=chosen,
        run=Run(device="cpu"),
        task=None if task is None else lambda: task(source),
    )


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def outputs(artifact, source):
    model = Stack(WIDTH)
    model.load_state_dict({name: artifact.read(name) for name in artifact.names()})
    task = StackTask(source)
    with torch.no_grad():
        return torch.cat([model.double()(task.train_batch(step)) for step in range(3)])


KEPT = (Override("*.gate.weight", None),)


@pytest.fixture(
    scope="module",
    params=[(None, ()), (StackTask, KEPT), (Bent, ())],
    ids=["no data", "data, a producer kept", "some data"],
)
def both(request, source, tmp_path_factory):
    """The artifacts with free orders and with stored ones."""
    task, overrides = request.param
    folder = tmp_path_factory.mktemp("both")
    reports = [
        run(adapter, source, folder / type(adapter).__name__, task=task, overrides=overrides)
        for adapter in (Free(), Stored())
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["Free", "Stored"]
    assert reports[0].data_free == reports[1].data_free
    return [Artifact.open(report.artifact) for report in reports]


def test_the_model_is_that_of_a_stored_order(both, source):
    free, stored = both
    torch.testing.assert_close(outputs(free, source), outputs(stored, source))
    for mine, other in zip(free.manifest.tensors, stored.manifest.tensors, strict=True):
        assert (mine.name, mine.relative_error) == (other.name, other.relative_error)


def test_its_rows_and_columns_are_those_of_the_stored_order(both):
    free, stored = both
    for i, down in enumerate(DOWN):
        order = permutation_of(stored.read_parts(down)["permutation"], 2 * WIDTH)
        assert not torch.equal(order, torch.arange(2 * WIDTH))
        assert torch.equal(free.read(down), stored.read(down)[:, order])
        for layer in ("gate.weight", "gate.bias", "up.weight", "up.bias"):
            name = f"blocks.{i}.{layer}"
            assert torch.equal(free.read(name), stored.read(name)[order]), name


def test_no_order_is_stored_and_nothing_gathered(both):
    free, stored = both
    for name in DOWN:
        assert "permutation" not in free.read_parts(name)
        assert PQWeight.from_pq(free.read_pq(name)).frame().keeps_inputs
        assert not PQWeight.from_pq(stored.read_pq(name)).frame().keeps_inputs
    less = len(DOWN) * 2 * WIDTH * 6 // 8
    assert stored.manifest.stored_nbytes - free.manifest.stored_nbytes == less


def test_other_permutations_stay(both):
    free, stored = both
    for name in ("blocks.0.q.weight", "blocks.2.up.weight", "head.weight"):
        assert "permutation" in free.read_parts(name)
        assert free.entry(name).relative_error == stored.entry(name).relative_error


@pytest.mark.parametrize("spec", [SPEC.replace(permute=False), SPEC.replace(transform="rht")])
def test_what_is_not_permuted_is_as_without_axes(source, tmp_path, spec):
    found = [run(a, source, tmp_path / type(a).__name__, spec=spec) for a in (Free(), Stored())]
    free, stored = (content(report.artifact) for report in found)
    assert free == stored


def test_one_axis_may_keep_its_order(source, tmp_path):
    rule = Override(DOWN[1], {"permute": False})
    found = Artifact.open(run(Free(), source, tmp_path / "out", overrides=[rule]).artifact)
    original = load_file(source)
    assert torch.equal(found.read("blocks.1.up.bias"), original["blocks.1.up.bias"])
    assert not torch.equal(found.read("blocks.0.up.bias"), original["blocks.0.up.bias"])


def test_a_plan_counts_no_bytes_for_it(source, tmp_path):
    adapter = Free()
    plan = make_plan(adapter.open(str(source)), adapter, SPEC)
    assert [t.name for t in plan if t.axis is not None] == DOWN
    report = run(adapter, source, tmp_path / "out", spec=plan)
    assert plan.nbytes == Artifact.open(report.artifact).manifest.stored_nbytes


@pytest.mark.parametrize("budget", [36_000, 42_000])
def test_a_budget_is_kept(source, tmp_path, budget):
    adapter = Free()
    grid = ((8, 64), (4, 16), (4, 64), (2, 64))
    checkpoint = adapter.open(str(source))
    planned = plan_for_budget(checkpoint, adapter, budget, candidate_specs(SPEC, grid))
    assert [t.name for t in planned.plan if t.axis is not None] == DOWN
    report = run(adapter, source, tmp_path / "out", spec=planned.plan)
    assert report.nbytes <= planned.nbytes <= budget
    assert report.nbytes > 0.9 * budget


def test_the_fingerprint_knows_the_axes(source):
    plan = make_plan(Free().open(str(source)), Free(), SPEC)
    bare = make_plan(Stored().open(str(source)), Stored(), SPEC.replace(permute=False))
    same = compress_module.Plan(
        tuple(
            compress_module.TensorPlan(name=t.name, info=t.info, spec=t.spec, partition=t.partition)
            for t in plan
        )
    )
    prints = [
        compress_module.fingerprint(Free().open(str(source)), one, "stacks")
        for one in (plan, same, bare)
    ]
    assert len(set(prints)) == 3


class KilledError(Exception):
    pass


@pytest.fixture
def kill(monkeypatch):
    """``kill(count)``: the count-th tensor is not written."""

    def arm(count):
        calls, real = [], compress_module._write

        def counted(*args):
            calls.append(1)
            if len(calls) == count:
                raise KilledError
            return real(*args)

        monkeypatch.setattr(compress_module, "_write", counted)

    return arm


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The files of runs that nobody disturbed, with a task or without."""

    @cache
    def make(task):
        return content(
            run(Free(), source, tmp_path_factory.mktemp("whole") / "out", task=task).artifact
        )

    return make


@pytest.mark.parametrize(("task", "count"), [(None, 1), (None, 4), (StackTask, 4), (StackTask, 20)])
def test_a_killed_run_is_resumed_with_the_same_bytes(
    source, whole, tmp_path, kill, monkeypatch, task, count
):
    kill(count)
    with pytest.raises(KilledError):
        run(Free(), source, tmp_path / "out", task=task)
    monkeypatch.undo()
    found = run(Free(), source, tmp_path / "out", task=task, resume=True)
    assert content(found.artifact) == whole(task)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_resumed_run_goes_on_with_the_order_of_the_first(
    source, whole, tmp_path, kill, monkeypatch
):
    """Also where its own search would find another one: other threads, another device."""
    names = list(Free().open(str(source)).tensors)
    kill(1 + names.index("blocks.0.gate.weight"))
    assert names.index(DOWN[0]) < names.index("blocks.0.gate.weight")
    with pytest.raises(KilledError):
        run(Free(), source, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "first.safetensors").write_bytes(whole(None)["model.safetensors"])
    monkeypatch.setattr(compress_order, "tensor_seed", lambda *_: 99)
    found = Artifact.open(run(Free(), source, tmp_path / "out", resume=True).artifact)
    biases = load_file(tmp_path / "first.safetensors")
    original = load_file(source)
    assert torch.equal(found.read("blocks.0.up.bias"), biases["blocks.0.up.bias"])
    assert not torch.equal(found.read("blocks.1.up.bias"), biases["blocks.1.up.bias"])
    for i, down in enumerate(DOWN):
        bias = found.read(f"blocks.{i}.up.bias")
        order = (bias[:, None] == original[f"blocks.{i}.up.bias"]).int().argmax(dim=1)
        for name, weight in (
            (down, original[down][:, order]),
            (f"blocks.{i}.up.weight", original[f"blocks.{i}.up.weight"][order]),
            (f"blocks.{i}.gate.weight", original[f"blocks.{i}.gate.weight"][order]),
        ):
            error = (weight - found.read(name)).square().sum() / weight.square().sum()
            assert float(error) == pytest.approx(found.entry(name).relative_error, rel=1e-3)


def test_damaged_consumers_are_named(source, tmp_path):
    tensors = load_file(source)
    tensors[DOWN[0]][3, 5] = torch.nan
    save_file(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(SpecError, match=rf"'{DOWN[0]}' holds NaN or infinite values; repair"):
        run(Free(), tmp_path / "damaged.safetensors", tmp_path / "out")


def test_an_order_that_cannot_be_kept_stops_the_run(source, tmp_path):
    (tmp_path / "out.blocks").mkdir()
    (tmp_path / "out.blocks" / "journal.json").write_text("{}")
    with pytest.raises(ArtifactError, match="use resume=True"):
        run(Free(), source, tmp_path / "out")
