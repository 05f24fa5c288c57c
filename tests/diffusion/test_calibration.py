"""Batches for calibrating denoisers, and whole runs on tiny ones."""

from __future__ import annotations

import math

import diffusion_models
import diffusion_pipelines
import pytest
import torch

import dpq
from dpq_core.artifact import Artifact
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import DPQError
from dpq_core.jobs.calibrate import CalibrateOptions as Command
from dpq_core.jobs.calibrate import calibrate_artifact
from dpq_core.jobs.compress import compress
from dpq_core.plugin.image_metrics import psnr
from dpq_core.run import Run
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import QuantSpec
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.calibration import trajectories
from dpq_diffusion.calibration.calls import slot_key
from dpq_diffusion.options import CalibrateOptions, CompressOptions
from dpq_diffusion.pipelines.conditions import make_items
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler

QUICK = {"trajectories": 3, "sampling_steps": 2, "batch_size": 4, "validation_samples": 6}

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
)

TEXT = ("text_to_image", "sdxl", "pixart_alpha", "flux_pipeline")
KINDS = ("pixel_dit", "latent_unet", "class_ldm", *TEXT)


@pytest.fixture(autouse=True)
def few_validation_images(monkeypatch):
    monkeypatch.setattr("dpq_diffusion.calibration.build._VALIDATION_IMAGES", 2)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_calls_reproduce_the_recorded_answers(make_task, kind):
    """Every argument was kept: run again, row by row in other company, the model says the same."""
    task = make_task(kind)
    batch = task.train_batch(0)
    output = task.forward(task.student, batch)
    assert batch["target"].square().mean() > 1e-3
    torch.testing.assert_close(output, batch["target"], rtol=1e-3, atol=1e-4)
    assert task.loss(batch) < 1e-7
    assert task.reference_loss() == 0
    assert {len(value) for value in batch.values()} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixel_dit", "flux_pipeline"])
@pytest.mark.parametrize("loss", ["distill", "training"])
def test_batches_are_functions_of_seed_and_step(make_task, kind, loss):
    if loss == "training":
        loss = "flow" if kind == "flux_pipeline" else "ddpm"
    one, two = make_task(kind, loss=loss), make_task(kind, loss=loss)
    later = one.train_batch(5)
    assert same(one.train_batch(0), two.train_batch(0))
    assert same(two.train_batch(5), later)
    assert not torch.equal(later[slot_key(0)], one.train_batch(0)[slot_key(0)])
    assert one.fingerprint == two.fingerprint
    validation = one.validation()
    assert len(validation) == 2
    assert all(same(a, b) for a, b in zip(validation, two.validation(), strict=True))
    other = make_task(kind, loss=loss, seed=1)
    assert other.fingerprint != one.fingerprint
    assert not torch.equal(other.train_batch(5)[slot_key(0)], later[slot_key(0)])


def test_validation_trajectories_are_not_trained_on(make_task):
    task = make_task("pixel_dit")
    seen = {x.numpy().tobytes() for step in range(40) for x in task.train_batch(step)[slot_key(0)]}
    held = {x.numpy().tobytes() for batch in task.validation() for x in batch[slot_key(0)]}
    assert len(seen) == 3 * 2
    assert not seen & held


@pytest.mark.parametrize(("guidance", "share"), [(1.5, 0.1), (3.0, 4 / 13), (1.0, 0.0)])
def test_null_class_is_drawn_as_often_as_its_errors_count(make_task, guidance, share):
    task = make_task("pixel_dit", guidance=guidance, batch_size=500)
    labels = torch.cat([task.train_batch(step)[slot_key(2)] for step in range(4)])
    null = (labels == 3).float().mean()
    assert abs(null - share) <= 3 * math.sqrt(share * (1 - share) / 2000)
    assert set(labels.tolist()) >= {0, 1, 2}


def test_equal_trajectories_are_drawn_once_in_a_job(make_task):
    run = Run(device="cpu", seed=0)
    first = make_task("pixel_dit", run=run, sampling_steps=3)
    again = make_task("pixel_dit", run=run, sampling_steps=3)
    assert again._samples.train.calls is first._samples.train.calls
    other = make_task("pixel_dit", run=run, sampling_steps=4)
    assert len(other._samples.train.calls) != len(first._samples.train.calls)


def test_long_trajectories_are_thinned_out(make_task, monkeypatch):
    whole = make_task("pixel_dit", sampling_steps=4)
    monkeypatch.setattr(trajectories, "_MAX_BYTES", 2 * 6 * 64 * 3 * 4)
    monkeypatch.setattr(trajectories, "_DRAWN_AT_ONCE", 3)
    thin = make_task("pixel_dit", sampling_steps=4)
    calls = len(thin._samples.train.calls)
    assert (len(whole._samples.train.calls), calls) == (4, 2)


def test_the_models_own_class_dropout_is_off(make_task, make_artifact, pipeline_of):
    task = make_task("pixel_dit", make_artifact(pipeline_of("pixel_dit")))
    task.student.train()
    batch = task.train_batch(0)
    losses = {float(task.loss(batch).detach()) for _ in range(8)}
    assert len(losses) == 1
    task.student.eval()
    assert losses == {float(task.loss(batch).detach())}


@pytest.mark.slow
def test_flux_is_told_sigmas(make_task):
    """Its pipeline divides timesteps by 1000, so the batches have to."""
    task = make_task("flux_pipeline", loss="flow")
    batch = task.train_batch(0)
    form = task._samples.train.form
    torch.testing.assert_close(batch[slot_key(form.timestep)], batch["level"])
    torch.testing.assert_close(
        batch["noisy"], torch.lerp(batch["clean"], batch["noise"], batch["level"][:, None, None])
    )
    assert task.reference_loss() > 0


def test_ddpm_on_own_images_has_their_classes(make_task):
    task = make_task("pixel_dit", loss="ddpm", class_dropout=0.0, batch_size=64)
    batch, source = task.train_batch(0), task._samples.train
    pairs = {
        (clean.numpy().tobytes(), int(label))
        for clean, label in zip(batch["clean"], batch[slot_key(2)], strict=True)
    }
    assert len(pairs) == 3  # as many as images: each has one class
    assert {label for _, label in pairs} <= {0, 1, 2}
    assert source.null[2].tolist() == [3, 3, 3]
    assert set(
        make_task("pixel_dit", loss="ddpm", class_dropout=1.0).train_batch(0)[slot_key(2)].tolist()
    ) == {3}


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("pixel_dit", ["transformer_blocks.0", "transformer_blocks.1"]),
        ("flux_pipeline", ["transformer_blocks.0", "single_transformer_blocks.0"]),
        ("class_ldm", []),
    ],
)
def test_blocks_are_those_of_transformers(make_task, kind, blocks):
    assert make_task(kind).blocks() == blocks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixel_dit", "class_ldm", "flux_pipeline"])
def test_all_that_is_trained_is_in_the_artifact(make_task, make_artifact, pipeline_of, kind):
    artifact = make_artifact(pipeline_of(kind))
    task = make_task(kind, artifact)
    names = set(Artifact.open(artifact).names())
    weights = {
        f"{path}.weight": module.weight
        for path, module in task.student.named_modules()
        if isinstance(getattr(module, "weight", None), PQWeight)
    }
    assert {task.tensor_name(path.removesuffix(".weight")) for path in weights} <= names
    inside = {id(p) for weight in weights.values() for p in weight.parameters()}
    trained = [
        task.parameter_name(name)
        for name, p in task.student.named_parameters()
        if p.requires_grad and id(p) not in inside
    ]
    assert weights
    assert trained
    assert set(trained) <= names
    assert task.loss(task.train_batch(0)) > 1e-5
    assert not any(p.requires_grad for p in task.teacher().parameters())


def test_a_component_alone_has_no_prefix(pipeline_of, tmp_path):
    model = diffusion_models.dit(in_channels=1, out_channels=2, num_layers=1)
    model.save_pretrained(tmp_path)
    task = DiffusionAdapter().calibration(
        str(tmp_path), str(tmp_path), CalibrateOptions(**QUICK), Run(device="cpu")
    )
    assert task.tensor_name("proj_out_1") == "proj_out_1.weight"
    assert task.teacher() is None


def test_copies_of_the_embedding_are_one_module(make_task):
    """A quantized one must serve all blocks, as it does in the artifact."""
    model = make_task("pixel_dit").student
    assert model.transformer_blocks[1].norm1.emb is model.transformer_blocks[0].norm1.emb


def test_another_original_is_refused(make_artifact, pipeline_of, tmp_path):
    diffusion_pipelines.pixel_dit(side=4).save_pretrained(tmp_path)
    with pytest.raises(DPQError, match="sample_size is 4, of the artifact 8"):
        DiffusionAdapter().calibration(
            str(make_artifact(pipeline_of("pixel_dit"))),
            str(tmp_path),
            CalibrateOptions(**QUICK),
            Run(device="cpu"),
        )


@pytest.mark.usefixtures("small_flux_images")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixel_dit", "class_ldm", "flux_pipeline"])
def test_calibrating_an_artifact_brings_it_closer(
    make_artifact, pipeline_of, prompts, tmp_path, kind
):
    told = {"prompts": prompts} if kind in TEXT else {}
    command = Command(
        settings=CalibrateSettings(steps=4, block_steps=1, block_batches=1, estep="icm"),
        adapter=CalibrateOptions(**QUICK, **told),
    )
    done = calibrate_artifact(
        DiffusionAdapter(),
        make_artifact(pipeline_of(kind)),
        tmp_path / "out",
        command,
        Run(device="cpu"),
    )
    assert done.report.after < 0.9 * done.report.before
    assert abs(done.nbytes - done.nbytes_before) < 200  # numbers in the manifest
    again = DiffusionAdapter().calibration(
        str(tmp_path / "out"), str(pipeline_of(kind)), command.adapter, Run(device="cpu")
    )
    losses = [float(again.loss(batch).detach()) for batch in again.validation()]
    assert sum(losses) / len(losses) == pytest.approx(done.report.after, rel=1e-3)


def test_compressing_with_data_looks_at_all_layers(pipeline_of, tmp_path):
    source = str(pipeline_of("pixel_dit"))
    spec = QuantSpec.preset(
        2, K=16, kmeans={"iterations": 2, "tail": 1}, assignment={"method": "ldlq+icm"}
    )
    adapter = DiffusionAdapter()
    options = CalibrateOptions(**QUICK)
    report = compress(
        adapter,
        source,
        tmp_path / "out",
        spec,
        task=lambda: adapter.calibration(source, source, options, Run(device="cpu")),
    )
    assert report.data_free == ()
    assert [s.name for s in report.segments if "transformer_blocks" in s.name]


@pytest.mark.parametrize(
    ("kind", "by_default"),
    [
        ("pixel_dit", True),
        ("latent_dit", True),
        ("latent_unet", False),
        ("class_ldm", False),
        ("pixart_alpha", False),
        ("flux_pipeline", False),
    ],
)
def test_transformers_of_classes_look_at_data_by_default(kind, by_default, pipeline_of):
    adapter = DiffusionAdapter()
    assert adapter.looks_at_data(str(pipeline_of(kind)), CompressOptions()) is by_default


def test_data_is_no_default_where_it_would_not_reach_what_is_compressed(pipeline_of):
    source = str(pipeline_of("pixel_dit"))
    assert not DiffusionAdapter().looks_at_data(source, CompressOptions(components="vae"))
    bare = f"{source}/transformer"
    assert DiffusionAdapter().looks_at_data(bare, CompressOptions())


@pytest.mark.parametrize("choice", [{}, {"data": False}])
def test_compressing_looks_at_data_unless_told_not_to(choice, pipeline_of, tmp_path, monkeypatch):
    monkeypatch.setattr("dpq_diffusion.calibration.build._COMPRESSION_IMAGES", 3)
    drawn = []
    record = trajectories.record

    def counting(sampler, conditions, count, *arguments):
        drawn.append(count)
        return record(sampler, conditions, count, *arguments)

    monkeypatch.setattr("dpq_diffusion.calibration.build.record", counting)
    sizes = {} if choice else {"sampling_steps": 2, "batch_size": 2}
    report = dpq.compress(
        str(pipeline_of("pixel_dit")), tmp_path / "out", bits=3, iterations=1, **sizes, **choice
    )
    assert drawn == ([] if choice else [3])  # none for validation, which nothing asks for
    data = Artifact.open(tmp_path / "out").manifest.data
    assert [entry.description for entry in data] == list(report.data)
    assert bool(report.data) == (not choice)
    assert all("3 trajectories" in text for text in report.data)
    assert report.data_free == ()


@pytest.mark.slow
def test_calibration_without_data_recovers_most_of_the_builtin(tmp_path):
    """At 2 bits, in a few steps: the loss on other trajectories, and images at the same seeds."""
    adapter, run = DiffusionAdapter(), Run(device="cpu")
    source = "builtin:tiny-dit"
    compress(adapter, source, tmp_path / "before", QuantSpec.preset(2), run=run)
    command = Command(
        settings=CalibrateSettings(
            steps=6, mode="end", estep="icm", every=3, statistics_batches=2, validate_every=6
        ),
        adapter=CalibrateOptions(
            trajectories=6, sampling_steps=4, batch_size=8, validation_samples=8
        ),
    )
    done = calibrate_artifact(adapter, tmp_path / "before", tmp_path / "after", command, run)
    assert done.report.recovered is not None
    assert done.report.recovered > 0.6
    images = [draw(adapter.load(str(s), run)) for s in (source, tmp_path / "before", done.artifact)]
    before, after = (psnr(one, images[0]).mean() for one in images[1:])
    assert after > before + 3


def draw(pipeline):
    """An image per class, unguided."""
    sampler = make_sampler(pipeline, RequestedSettings(steps=10, guidance=1.0))
    return sampler.draw(make_items(sampler.conditions((), ()), 10, 0))
