"""compress() with a task: statistics from the quantized prefix, resumable, else as without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toy_blocks import Stack, Task

from dpq_core.artifact import Artifact
from dpq_core.data.sequential import quantizer
from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.errors import ArtifactError
from dpq_core.jobs import compress as compress_module
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.jobs.inspect import inspect
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.run import Run
from dpq_core.spec import AssignmentSpec, KMeansSpec, QuantSpec
from dpq_core.tensor.checkpoint import SafetensorsCheckpoint
from dpq_core.tensor.partition import Layout

pytestmark = pytest.mark.slow  # whole runs of a job

WIDTH, BATCHES = 32, 8
KMEANS = KMeansSpec(iterations=2, tail=1)
SPEC = QuantSpec(d=4, K=16, kmeans=KMEANS, assignment=AssignmentSpec(method="ldlq+icm"))


class Stacks(TensorAdapter):
    name = "stacks"
    summary = "stacks of toy blocks in a .safetensors file"

    def open(self, source):
        return SafetensorsCheckpoint(source, [Path(source)])

    def select(self, name, shape):
        if name == "embed.weight":
            return Layout.EMBEDDING
        return Layout.LINEAR if len(shape) == 2 else None


class StackTask(Task):
    data = "toy batches"

    def __init__(self, source, fingerprint="data"):
        model = Stack(WIDTH)
        model.spare = nn.Linear(WIDTH, WIDTH)  # never runs
        model.load_state_dict(source)
        super().__init__(model)
        self.fingerprint = fingerprint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint of which the activations have large and small coordinates."""
    torch.manual_seed(0)
    model = Stack(WIDTH)
    model.spare = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        model.embed.weight *= torch.linspace(2, 0.1, WIDTH)
    path = tmp_path_factory.mktemp("source") / "stack.safetensors"
    save_file(model.state_dict(), path)
    return path


def read(source):
    checkpoint = SafetensorsCheckpoint("source", [source])
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def run(source, out, *, data="data", sequential=None, run=None, **options):
    """Compress; ``data`` is the fingerprint of the task, None goes without one."""
    chosen = SequentialOptions(**{"batches": BATCHES, **(sequential or {})})
    return compress(
        Stacks(),
        str(source),
        out,
        SPEC,
        options=CompressOptions(probe=False, sequential=chosen, **options),
        run=run or Run(device="cpu"),
        task=None if data is None else lambda: StackTask(read(source), data),
    )


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The report of a run that nobody disturbed."""
    return run(source, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def blind(source, tmp_path_factory):
    """The report of a run without data."""
    return run(source, tmp_path_factory.mktemp("blind") / "out", data=None)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def decoded(report):
    artifact = Artifact.open(report.artifact)
    return {name: artifact.read(name) for name in artifact.names()}


def test_what_was_read_stands_in_the_manifest(whole, blind):
    (entry,) = Artifact.open(whole.artifact).manifest.data
    assert (entry.use, entry.description) == ("compress", "toy batches")
    assert whole.data == ("toy batches",)
    assert "toy batches" in whole.table()
    shown = inspect(whole.artifact)
    assert shown.to_json()["data"] == [vars(entry)]
    assert re.search("read to compress .*toy batches", shown.table())
    assert Artifact.open(blind.artifact).manifest.data == blind.data == ()
    assert "data" not in json.loads((blind.artifact / "dpq.json").read_text())


def output_error(source, report):
    """Mean squared error of the model's outputs, on batches that were not used."""
    teacher, student = StackTask(read(source)), StackTask(decoded(report))
    with torch.no_grad():
        lost = [
            (teacher.student(batch) - student.student(batch)).square().mean()
            for batch in map(teacher.train_batch, range(100, 110))
        ]
    return float(sum(lost))


class KilledError(Exception):
    pass


@pytest.fixture
def kill(monkeypatch):
    """``kill(module, name, count)``: the count-th call of a function never returns."""

    def arm(module, name, count):
        calls, real = [], getattr(module, name)

        def counted(*args, **kwargs):
            calls.append(1)
            if len(calls) == count:
                raise KilledError
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    return arm


def test_statistics_lower_the_error_of_the_models_output(source, whole, blind):
    assert whole.nbytes == pytest.approx(blind.nbytes, rel=0.01)
    assert output_error(source, whole) < 0.6 * output_error(source, blind)


def test_the_artifact_holds_what_the_model_computed_with(source, tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr(
        StackTask, "blocks", lambda self: tasks.append(self) or self.student.blocks_of
    )
    values = decoded(run(source, tmp_path / "out"))
    weights = tasks[0].student.state_dict()
    different = [name for name in values if not torch.equal(values[name], weights[name])]
    assert different == ["spare.weight"]  # it never ran


def test_layers_that_never_run_are_quantized_without_data_and_named(whole, blind):
    assert (blind.data_free, blind.segments) == ((), ())
    assert whole.data_free == ("spare.weight",)
    assert [len(segment.tensors) for segment in whole.segments] == [1, 7, 7, 7, 1]
    a, b = (Artifact.open(report.artifact).read_parts("spare.weight") for report in (blind, whole))
    assert all(torch.equal(a[part], b[part]) for part in a)
    errors = {report.name: report.relative_error for report in whole.tensors}
    assert errors["spare.weight"] > 0
    assert errors["blocks.0.norm1.weight"] is None
    stored = {e.name: e.relative_error for e in Artifact.open(whole.artifact).manifest.tensors}
    assert stored == errors


def test_a_weight_that_the_model_has_changed_is_quantized_without_data(source, tmp_path):
    def make():
        task = StackTask(read(source))
        with torch.no_grad():
            task.student.blocks[1].o.weight.mul_(2)
        return task

    options = CompressOptions(probe=False, sequential=SequentialOptions(batches=BATCHES))
    found = compress(Stacks(), str(source), tmp_path / "out", SPEC, options=options, task=make)
    assert found.data_free == ("blocks.1.o.weight", "spare.weight")


@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        (quantizer, "quantize", 1),
        (quantizer, "quantize", 9),
        (quantizer, "quantize", 23),
        (compress_module, "_write", 1),
        (compress_module, "_write", 20),
        (compress_module, "discard_blocks", 1),
    ],
)
def test_a_killed_run_is_resumed_with_the_same_bytes(
    source, whole, tmp_path, kill, monkeypatch, module, name, count
):
    kill(module, name, count)
    with pytest.raises(KilledError):
        run(source, tmp_path / "out")
    monkeypatch.undo()
    again = run(source, tmp_path / "out", resume=True)
    assert content(whole.artifact) == content(again.artifact)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_while_it_is_written_nothing_is_computed_again(source, tmp_path, kill, monkeypatch):
    kill(compress_module, "_write", 30)
    with pytest.raises(KilledError):
        run(source, tmp_path / "out")
    monkeypatch.undo()
    kill(StackTask, "forward", 1)
    run(source, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    "change",
    [{"data": "other"}, {"sequential": {"batches": 2}}, {"sequential": {"store_inputs": False}}],
)
def test_a_run_with_other_data_is_not_resumed(source, tmp_path, kill, monkeypatch, change):
    kill(quantizer, "quantize", 9)
    with pytest.raises(KilledError):
        run(source, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="another source or spec"):
        run(source, tmp_path / "out", resume=True, **change)
    (tmp_path / "out.partial").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="another source, spec or calibration data") as caught:
        run(source, tmp_path / "out", resume=True, **change)
    assert "\n" not in str(caught.value)


def test_memory_may_change_on_the_way(source, whole, tmp_path, kill, monkeypatch):
    kill(quantizer, "quantize", 9)
    with pytest.raises(KilledError):
        run(source, tmp_path / "out", sequential={"memory": 0})
    monkeypatch.undo()
    again = run(source, tmp_path / "out", sequential={"memory": 1000}, resume=True)
    assert content(whole.artifact) == content(again.artifact)


def test_unfinished_blocks_are_replaced_on_request(source, tmp_path, kill, monkeypatch):
    kill(quantizer, "quantize", 9)
    with pytest.raises(KilledError):
        run(source, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="use resume=True"):
        run(source, tmp_path / "out", data="other")
    run(source, tmp_path / "out", data="other", overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_without_a_task_nothing_changes(source, blind):
    """The fingerprint, and with it every byte, is what it was before there were tasks."""
    checkpoint = Stacks().open(str(source))
    plan = compress_module.make_plan(checkpoint, Stacks(), SPEC)
    found = Artifact.open(blind.artifact).manifest.fingerprint
    assert found == compress_module.fingerprint(checkpoint, plan, "stacks")
    assert found != compress_module.fingerprint(checkpoint, plan, "stacks", ["data", {}])


def test_embeddings_are_weighted_by_half_their_look_ups():
    statistics = quantizer.LayerStatistics(count=8, row_counts=torch.tensor([0.0, 2.0, 6.0, 0.0]))
    found = quantizer.input_statistics(statistics, torch.device("cpu"))
    assert found.row_weight.tolist() == [0.5, 1.0, 2.0, 0.5]
    assert found.hessian is None
    nothing = quantizer.LayerStatistics(count=0, row_counts=torch.zeros(3))
    found = quantizer.input_statistics(nothing, torch.device("cpu"))
    assert found.row_weight.tolist() == [0.5, 0.5, 0.5]


def test_the_matrix_of_a_layer_is_given_on_where_it_is_wanted():
    hessian = torch.eye(3)
    statistics = quantizer.LayerStatistics(count=1, hessian=hessian)
    found = quantizer.input_statistics(statistics, torch.device("cpu"))
    assert torch.equal(found.hessian, hessian)
    assert found.row_weight is None
    moved = quantizer.input_statistics(statistics, torch.device("meta"))
    assert moved.hessian.device.type == "meta"


def test_progress_is_one_line_of_work(source, tmp_path):
    seen = []
    run(source, tmp_path / "out", run=Run(device="cpu", progress=lambda *x: seen.append(x)))
    assert len({total for _, _, total in seen}) == 1
    done = [count for _, count, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == "done"
    assert seen[-1][1] == seen[-1][2]
