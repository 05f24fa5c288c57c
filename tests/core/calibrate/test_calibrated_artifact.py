"""Calibrating an artifact: what is read, what is written, who may."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from artifact_model import snapshot
from calibration_adapter import CalibratedMLP, Task
from cli_runs import write_mlp
from safetensors.torch import load_file, save_file
from toy_adapter import MLPAdapter

from dpq_core.artifact import Artifact
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import AdapterError, ArtifactError, SourceError
from dpq_core.jobs.calibrate import CalibrateOptions, calibrate_artifact
from dpq_core.jobs.compress import compress
from dpq_core.jobs.probe import check_probe
from dpq_core.jobs.rewrite import rewrite
from dpq_core.run import Run
from dpq_core.spec import KMeansSpec, QuantSpec

SPEC = QuantSpec(d=4, K=32, kmeans=KMeansSpec(iterations=4))
SETTINGS = CalibrateSettings(steps=30, warm_start=True, every=5, validate_every=10)
OPTIONS = CalibrateOptions(settings=SETTINGS)


@pytest.fixture
def artifact(tmp_path):
    source = write_mlp(tmp_path / "mlp.safetensors")
    compress(CalibratedMLP(), str(source), tmp_path / "in", SPEC)
    return tmp_path / "in"


@pytest.mark.slow
def test_the_artifact_is_better_and_as_large(artifact, tmp_path):
    done = calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", OPTIONS)
    assert done.report.recovered > 0.2
    old, new = Artifact.open(artifact), Artifact.open(tmp_path / "out")
    assert new.manifest.stored_nbytes == old.manifest.stored_nbytes
    assert new.names() == old.names()
    assert new.manifest.specs == old.manifest.specs
    assert new.manifest.source == old.manifest.source
    assert not old.manifest.data
    (entry,) = new.manifest.data
    assert (entry.use, entry.description) == ("calibrate", "random inputs")
    assert done.nbytes == new.nbytes
    assert done.nbytes_before == old.nbytes
    new.verify()


@pytest.mark.slow
def test_what_is_stored_has_the_loss_that_was_reported(artifact, tmp_path):
    done = calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", OPTIONS)
    source = Artifact.open(artifact).manifest.source
    task = CalibratedMLP().calibration(str(tmp_path / "out"), source, None, Run())
    with torch.no_grad():
        loss = sum(float(task.loss(batch)) for batch in task.validation()) / 4
    assert loss == pytest.approx(done.report.after, rel=1e-6)


@pytest.mark.slow
def test_errors_and_probe_are_measured_anew(artifact, tmp_path):
    calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", OPTIONS)
    new = Artifact.open(tmp_path / "out")
    original = load_file(new.manifest.source)
    for name in ("w1", "w2"):
        weight = original[name]
        error = (weight - new.read(name)).square().sum() / weight.square().sum()
        assert new.entry(name).relative_error == pytest.approx(float(error), rel=1e-4)
    assert new.entry("w1").relative_error != Artifact.open(artifact).entry("w1").relative_error
    assert check_probe(CalibratedMLP(), new, Run()).ok
    assert not torch.equal(new.read("b1"), original["b1"])


@pytest.mark.slow
def test_the_old_artifact_can_be_replaced_by_the_new_one(artifact):
    before = snapshot(artifact)
    options = CalibrateOptions(settings=SETTINGS, overwrite=True)
    calibrate_artifact(CalibratedMLP(), artifact, artifact, options)
    assert snapshot(artifact) != before
    Artifact.open(artifact).verify()


class Impatient(CalibratedMLP):
    """Ctrl-C in step 7."""

    def calibration(self, *args):
        task = super().calibration(*args)
        draw = task.train_batch

        def train_batch(step: int):
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return draw(step)

        task.train_batch = train_batch
        return task


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_bytes(artifact, tmp_path):
    calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "whole", OPTIONS)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        calibrate_artifact(Impatient(), artifact, out, OPTIONS)
    assert not out.exists()
    with pytest.raises(ArtifactError, match="use resume=True to continue it or overwrite=True"):
        calibrate_artifact(CalibratedMLP(), artifact, out, OPTIONS)
    options = CalibrateOptions(settings=SETTINGS, resume=True)
    calibrate_artifact(CalibratedMLP(), artifact, out, options)
    assert snapshot(out) == snapshot(tmp_path / "whole")
    assert not (tmp_path / "out.calibration").exists()


def test_another_seed_is_another_run(artifact, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        calibrate_artifact(Impatient(), artifact, tmp_path / "out", OPTIONS)
    options = CalibrateOptions(settings=SETTINGS, resume=True)
    with pytest.raises(ArtifactError, match="is the state of another run"):
        calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", options, Run(seed=5))


def test_an_output_in_the_way_is_refused_before_any_work(artifact, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="is not a dpq artifact"):
        calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "mine", OPTIONS)
    with pytest.raises(ArtifactError, match="exists already; use overwrite=True"):
        calibrate_artifact(CalibratedMLP(), artifact, artifact, OPTIONS)


@pytest.mark.slow
def test_a_source_that_has_moved_must_be_named(artifact, tmp_path):
    (tmp_path / "mlp.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(SourceError, match=r"say where with baseline") as caught:
        calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", OPTIONS)
    assert "\n" not in str(caught.value)
    moved = str(tmp_path / "moved.safetensors")
    options = CalibrateOptions(settings=SETTINGS, baseline=moved)
    done = calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", options)
    assert done.report.recovered > 0.2


def test_another_model_as_reference_is_refused(artifact, tmp_path):
    other = write_mlp(tmp_path / "other.safetensors", hidden=80)
    options = CalibrateOptions(settings=SETTINGS, baseline=str(other))
    with pytest.raises(SourceError, match="is this the model that was compressed"):
        calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", options)


def test_an_adapter_without_calibration_says_so(artifact, tmp_path):
    with pytest.raises(AdapterError, match="cannot calibrate"):
        calibrate_artifact(MLPAdapter(), artifact, tmp_path / "out", OPTIONS)
    assert "calibrate" not in MLPAdapter.capabilities()
    assert "calibrate" in CalibratedMLP.capabilities()


@pytest.mark.slow
def test_a_trained_parameter_that_is_not_stored_is_the_adapters_mistake(
    artifact, tmp_path, monkeypatch
):
    monkeypatch.setattr(Task, "parameter_name", lambda self, name: "nowhere")
    with pytest.raises(AdapterError, match="'nowhere' was trained, but the artifact has no such"):
        calibrate_artifact(CalibratedMLP(), artifact, tmp_path / "out", OPTIONS)


def test_rewriting_nothing_keeps_every_tensor(artifact, tmp_path):
    old = Artifact.open(artifact)
    new = rewrite(CalibratedMLP(), old, tmp_path / "copy", lambda name: None)
    assert new.manifest.tensors == old.manifest.tensors
    for name in old.names():
        for part, value in old.read_parts(name).items():
            assert torch.equal(new.read_parts(name)[part], value)
    unlike = {f for f in old.manifest.files if new.manifest.files[f] != old.manifest.files[f]}
    assert unlike == set()
    assert new.manifest.fingerprint != old.manifest.fingerprint


def test_a_replaced_dense_tensor_is_stored_in_its_dtype(tmp_path):
    path = tmp_path / "half.safetensors"
    tensors = load_file(write_mlp(tmp_path / "mlp.safetensors"))
    save_file({**tensors, "b1": tensors["b1"].half()}, path)
    compress(MLPAdapter(), str(path), tmp_path / "in", SPEC)
    old = Artifact.open(tmp_path / "in")
    new = torch.linspace(0, 1, 96)
    out = rewrite(MLPAdapter(), old, tmp_path / "out", {"b1": new}.get)
    assert torch.equal(out.read("b1"), new.half())
