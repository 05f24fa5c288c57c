"""The units of an artifact are found again among those of the original."""

from __future__ import annotations

import pytest
import torch
from calibration_adapter import CalibratedMLP
from cli_runs import write_mlp
from hypothesis import given, settings
from hypothesis import strategies as st

from dpq_core.artifact import Artifact
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.jobs import calibrate as em_artifact
from dpq_core.jobs import hidden_match
from dpq_core.jobs.compress import compress
from dpq_core.jobs.hidden_match import aligned, match
from dpq_core.jobs.rewrite import rewrite
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_core.tensor.hidden_axes import HiddenAxis, Producer

pytestmark = pytest.mark.portable

SPEC = QuantSpec(d=4, K=32, permute=True, kmeans=KMeansSpec(iterations=4))


class FreeMLP(CalibratedMLP):
    """Names the hidden units between its two layers."""

    def hidden_axes(self, checkpoint):
        return [HiddenAxis(consumer="w2", producers=(Producer("w1"), Producer("b1")))]


@pytest.fixture(params=[4096, 7])
def chunk(request, monkeypatch):
    monkeypatch.setattr(hidden_match, "_CHUNK", request.param)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_units_are_found_under_noise(noise, chunk):
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(500, 64, generator=generator)
    order = torch.randperm(500, generator=generator)
    ours = theirs[order] + noise * torch.randn(500, 64, generator=generator)
    assert torch.equal(match(ours, theirs), order)


@given(units=st.integers(0, 12), seed=st.integers(0, 99), levels=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_unit_is_found_once_also_among_equals(units, seed, levels):
    """Few levels: many units are zero, or equal to others."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randint(levels, (2, units, 2), generator=generator).float()
    assert sorted(match(ours, theirs).tolist()) == list(range(units))


def test_units_without_weights_do_not_hold_up_the_others():
    theirs = torch.zeros(300, 16)
    theirs[:40] = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    found = match(theirs[order], theirs)
    assert torch.equal(theirs[found], theirs[order])
    assert sorted(found.tolist()) == list(range(300))


def _compressed(tmp_path, adapter, spec=SPEC):
    source = write_mlp(tmp_path / "mlp.safetensors")
    compress(adapter, str(source), tmp_path / "in", spec)
    return adapter.open(str(source)), Artifact.open(tmp_path / "in")


def _errors(checkpoint, artifact):
    """Relative errors as they were stored, and against a checkpoint."""
    for entry in artifact.manifest.tensors:
        weight, value = checkpoint.read(entry.name), artifact.read(entry.name)
        yield (
            entry.relative_error or 0.0,
            float((weight - value).square().sum() / weight.square().sum()),
        )


def test_the_original_is_put_in_the_order_of_the_artifact(tmp_path):
    original, artifact = _compressed(tmp_path, FreeMLP())
    for stored, found in _errors(aligned(FreeMLP(), original, artifact), artifact):
        assert found == pytest.approx(stored, rel=1e-4, abs=1e-9)
    assert max(found for _, found in _errors(original, artifact)) > 1  # it was in another


@pytest.mark.parametrize(
    ("adapter", "spec"),
    [
        (CalibratedMLP(), SPEC),
        (FreeMLP(), SPEC.replace(permute=False)),
        (FreeMLP(), SPEC.replace(transform="rht")),
        (FreeMLP(), SPEC.replace(orientation="output")),
    ],
)
def test_units_that_stayed_in_place_are_found_there(tmp_path, adapter, spec):
    original, artifact = _compressed(tmp_path, adapter, spec)
    found = aligned(FreeMLP(), original, artifact)
    for name in ("w1", "b1", "w2"):
        assert torch.equal(found.read(name), original.read(name))


def test_another_model_is_refused_as_before(tmp_path):
    """Tensors of other shapes are no axis."""
    _, artifact = _compressed(tmp_path, FreeMLP())
    other = FreeMLP().open(str(write_mlp(tmp_path / "other.safetensors", hidden=64)))
    assert torch.equal(aligned(FreeMLP(), other, artifact).read("w2"), other.read("w2"))


class StoppedError(Exception):
    pass


def test_calibration_is_given_the_originals_of_the_units(tmp_path, monkeypatch):
    """Else codes would move towards the weights of other units."""
    _, artifact = _compressed(tmp_path, FreeMLP())
    given = []

    def calibrate(task, settings, *, checkpoint, **_):
        given.append(checkpoint)
        raise StoppedError

    monkeypatch.setattr(em_artifact, "calibrate", calibrate)
    with pytest.raises(StoppedError):
        em_artifact.calibrate_artifact(FreeMLP(), artifact.path, tmp_path / "out")
    for stored, found in _errors(given[0], artifact):
        assert found == pytest.approx(stored, rel=1e-4, abs=1e-9)


def test_errors_of_a_rewritten_artifact_are_those_of_the_units(tmp_path):
    original, artifact = _compressed(tmp_path, FreeMLP())
    new = {name: artifact.read_pq(name) for name in ("w1", "w2")}
    out = rewrite(FreeMLP(), artifact, tmp_path / "out", new.get, baseline=original)
    for before, after in zip(artifact.manifest.tensors, out.manifest.tensors, strict=True):
        assert after.relative_error == (
            None
            if before.relative_error is None
            else pytest.approx(before.relative_error, rel=1e-4)
        )


@pytest.mark.slow
def test_calibration_recovers_as_much_as_with_a_stored_order(tmp_path):
    settings = CalibrateSettings(steps=20, warm_start=True, validate_every=5)
    options = em_artifact.CalibrateOptions(settings=settings)
    reports = []
    for adapter in (FreeMLP(), CalibratedMLP()):
        folder = tmp_path / type(adapter).__name__
        folder.mkdir()
        _, artifact = _compressed(folder, adapter)
        done = em_artifact.calibrate_artifact(adapter, artifact.path, folder / "out", options)
        reports.append(done.report)
    free, stored = reports
    assert free.before == pytest.approx(stored.before, rel=1e-4)
    assert free.recovered == pytest.approx(stored.recovered, abs=0.05)
