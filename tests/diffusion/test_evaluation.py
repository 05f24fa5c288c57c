"""``dpq eval`` for diffusion models: judges, fidelity, and what every number says about itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import diffusion_pipelines
import pytest
import torch
from PIL import Image

from dpq_cli.render import emit_json
from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_diffusion.evaluation import evaluate as evaluation
from dpq_diffusion.evaluation.evaluate import evaluate
from dpq_diffusion.evaluation.frechet import gaussian
from dpq_diffusion.evaluation.reference import Statistics, write_statistics
from dpq_diffusion.options import EvaluateOptions, SampleOptions
from dpq_diffusion.sampling import sample as sampling
from dpq_diffusion.sampling.images import PngFolder, write_npz

RUN = Run(device="cpu", seed=5)
BUILTIN = "builtin:tiny-dit"

DISTANCE = "Frechet distance (tiny-classifier)"
SCORE = "classifier score (tiny-classifier)"
PRECISION = "precision (tiny-classifier)"
RECALL = "recall (tiny-classifier)"
AGREEMENT = "class agreement (tiny-classifier)"
QUALITY = [DISTANCE, SCORE, PRECISION, RECALL, AGREEMENT]
FIDELITY = ["PSNR", "SSIM", "latent MSE"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
)


@pytest.fixture
def models(monkeypatch) -> dict:
    """Source name -> pipeline; ``builtin:tiny-dit`` is small, and draws 28x28 noise."""
    digits = tuple("0123456789")
    known = {
        "plain": diffusion_pipelines.pixel_dit(),
        "compressed": diffusion_pipelines.disturbed(diffusion_pipelines.pixel_dit()),
        BUILTIN: diffusion_pipelines.pixel_dit(classes=digits, side=28),
    }
    for module in (evaluation, sampling):
        monkeypatch.setattr(module, "load_pipeline", lambda source, run: known[source])
    return known


def measure(source: str, **options):
    return evaluate(source, EvaluateOptions(**{"count": 6, "sampling_steps": 3} | options), RUN)


def values(found) -> dict[str, float]:
    return {m.name.removesuffix(" to the uncompressed model"): m.value for m in found.metrics}


def test_a_model_is_faithful_to_itself(models, capsys):
    found = measure("plain", baseline="plain")
    assert list(values(found)) == FIDELITY
    assert values(found)["PSNR"] == math.inf
    assert values(found)["SSIM"] == pytest.approx(1.0)
    assert values(found)["latent MSE"] == 0
    assert found.details["latent_mse_per_step"] == [0, 0, 0]
    emit_json({"metrics": values(found), "details": found.details})
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail)["metrics"]["PSNR"] == "inf"


def test_a_disturbed_model_is_not(models):
    found = measure("compressed", baseline="plain", baseline_count=4)
    assert 5 < values(found)["PSNR"] < 60
    assert 0 < values(found)["SSIM"] < 1
    steps = found.details["latent_mse_per_step"]
    assert len(steps) == 3
    assert values(found)["latent MSE"] == pytest.approx(sum(steps) / 3)
    assert all("4 image pairs at the same seeds" in m.protocol for m in found.metrics)
    assert all("ddim, 3 steps, guidance 1.5, seed 5" in m.protocol for m in found.metrics)


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, "3 classes in turn"),
        ({"label": ("2",)}, "class 2"),
        ({"label": ("2", "0")}, "2 classes"),
    ],
)
def test_protocols_say_what_is_drawn(models, options, drawn):
    found = measure("plain", baseline="plain", count=2, **options)
    assert all(f", {drawn}" in m.protocol for m in found.metrics)


@pytest.mark.slow
def test_fidelity_does_not_depend_on_the_batch_size(models):
    one, four = (
        values(measure("compressed", baseline="plain", batch_size=size)) for size in (1, 4)
    )
    assert one == pytest.approx(four, rel=0.02)


def test_fidelity_to_a_folder_of_samples(models, tmp_path):
    options = SampleOptions(sampling_steps=3, count=6)
    sampling.sample("plain", options, RUN, tmp_path)
    direct = values(measure("compressed", baseline="plain", batch_size=16))
    found = values(measure("compressed", baseline=str(tmp_path)))
    assert found == pytest.approx({k: direct[k] for k in ("PSNR", "SSIM")}, rel=1e-3)
    with pytest.raises(SpecError, match="drawn otherwise"):
        measure("compressed", baseline=str(tmp_path), sampling_steps=4)


def test_fidelity_to_another_process_is_refused(models):
    models["other"] = diffusion_pipelines.latent_unet()
    with pytest.raises(SpecError, match=r"baseline='other': draws by ddim, 3 steps, guidance 1;"):
        measure("plain", baseline="other")


@pytest.mark.slow
def test_text_to_image_pipelines_show_their_latents(models):
    models["text"] = diffusion_pipelines.text_to_image()
    found = measure("text", baseline="text", prompt=("a cat",), count=2)
    assert list(values(found)) == FIDELITY
    assert found.details["latent_mse_per_step"] == [0, 0, 0]
    assert all(", one prompt, " in m.protocol for m in found.metrics)


def test_the_builtin_model_is_scored_by_its_classifier(models):
    found = measure(BUILTIN)
    assert list(values(found)) == QUALITY
    for metric in found.metrics:
        assert "6 samples" in metric.protocol
        assert (
            "extractor tiny-classifier, 10 classes in turn, ddim, 3 steps, guidance 1.5, seed 5"
            in metric.protocol
        )
    assert values(found)[DISTANCE] > 0
    protocols = {m.name: m.protocol for m in found.metrics}
    assert "10,000 images of reference.safetensors" in protocols[DISTANCE]
    assert "6 samples and 2,000 images of reference.safetensors" in protocols[RECALL]
    assert 0 <= values(found)[AGREEMENT] <= 1
    assert found.details["fidelity"] == "left out: the model is not compressed"
    assert measure(BUILTIN).metrics == found.metrics


def test_class_agreement_counts_the_classes_asked_for(models, tmp_path):
    from dpq_diffusion.evaluation.tiny_classifier import load_classifier
    from dpq_diffusion.folders import BUILTIN as FOLDER

    found = values(measure(BUILTIN, folder=str(tmp_path), count=12))
    (batch,) = PngFolder(tmp_path / "images").batches(12)
    pixels = batch[..., 0].unsqueeze(1).float() / 127.5 - 1
    with torch.no_grad():
        logits = load_classifier(FOLDER / "tiny-dit" / "classifier")(pixels)
    hits = logits.argmax(1) == torch.arange(12) % 10
    assert found[AGREEMENT] == pytest.approx(hits.float().mean().item())


def test_an_artifact_is_compared_with_its_source(models, monkeypatch):
    monkeypatch.setattr(evaluation, "origin_of", lambda source: BUILTIN)
    models["artifact"] = diffusion_pipelines.disturbed(
        diffusion_pipelines.pixel_dit(classes=tuple("0123456789"), side=28)
    )
    found = measure("artifact", baseline_count=2)
    assert list(values(found)) == [*QUALITY, *FIDELITY]
    assert found.details["fidelity"] == BUILTIN
    without = measure("artifact", baseline="none")
    assert list(values(without)) == QUALITY
    assert without.details["fidelity"] == "left out"


def test_a_source_that_is_gone_is_noted(models, monkeypatch, tmp_path):
    gone = str(tmp_path / "gone")
    monkeypatch.setattr(evaluation, "origin_of", lambda source: gone)
    _reference(tmp_path / "ref.safetensors", "adm-inception-v3")
    with pytest.raises(SpecError, match="nothing to measure; give reference_stats"):
        measure("compressed")
    assert evaluation._find_baseline("compressed", gone, "") == (
        "",
        f"left out: no baseline is given, and {gone} is not on this machine",
    )


def test_samples_are_kept_and_used_again(models, tmp_path):
    first = measure(BUILTIN, folder=str(tmp_path))
    paths = sorted((tmp_path / "images").iterdir())
    assert [p.name for p in paths] == [f"00000{i}.png" for i in range(6)]
    models[BUILTIN].transformer.forward = None  # cannot draw any more
    assert measure(BUILTIN, folder=str(tmp_path)).metrics == first.metrics
    with pytest.raises(SpecError, match="samples of other settings"):
        measure(BUILTIN, folder=str(tmp_path), sampling_steps=2)


@pytest.mark.slow
def test_a_reference_of_the_same_images(models, tmp_path):
    measure(BUILTIN, folder=str(tmp_path / "set"))
    batch = tmp_path / "ref.npz"
    write_npz(batch, PngFolder(tmp_path / "set" / "images"))
    for reference in (tmp_path / "set" / "images", batch):
        found = values(measure(BUILTIN, reference_stats=str(reference)))
        assert found[DISTANCE] == pytest.approx(0, abs=1e-3)
        assert found[PRECISION] == 1
        assert found[RECALL] == 1


def test_a_reference_of_another_resolution_is_refused(models, tmp_path):
    Image.new("L", (32, 32)).save(tmp_path / "0.png")
    with pytest.raises(SpecError, match="holds 32x32 images but the samples are 28x28"):
        measure(BUILTIN, reference_stats=str(tmp_path))


def test_only_inception_may_use_its_statistics(models, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    reference = _reference(tmp_path / "ref.safetensors", "adm-inception-v3")
    with pytest.raises(SourceError, match="Inception weights"):
        measure(BUILTIN, reference_stats=str(reference))


def _reference(path: Path, extractor: str) -> Path:
    features = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    write_statistics(path, Statistics(extractor=extractor, pool=gaussian(features)))
    return path


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("plain", {}, "nothing to measure; give reference_stats with inception for FID"),
        (
            "plain",
            {"inception": "download"},
            "inception: there is nothing to compare the samples with",
        ),
        ("plain", {"baseline": "plain", "label": ("9",)}, "the model has the classes 0 to 2"),
    ],
)
def test_mistakes_are_one_line(models, source, options, message):
    with pytest.raises(SpecError) as caught:
        measure(source, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, "count=1: must be 2 or more"),
        ({"baseline_count": 0}, "baseline_count=0: must be 1 or more"),
        ({"scheduler": "euler"}, "scheduler='euler': unknown scheduler; known: auto, ddpm, ddim"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(SpecError) as caught:
        EvaluateOptions(**options)
    assert message in str(caught.value)
