"""Batches and losses for calibrating denoisers, and whole runs on tiny ones."""

from __future__ import annotations

import math
from functools import cache

import diffusion_models
import diffusion_pipelines
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.distributions import Normal, kl_divergence

from dpq_core.adapter import Run
from dpq_core.artifact import Artifact
from dpq_core.compress import compress
from dpq_core.em_artifact import CalibrateOptions as Command
from dpq_core.em_artifact import calibrate_artifact
from dpq_core.em_settings import CalibrateSettings
from dpq_core.errors import DPQError
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import QuantSpec
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.calibration import trajectories
from dpq_diffusion.calibration.calls import key
from dpq_diffusion.calibration.data import encode, read_images
from dpq_diffusion.calibration.options import CalibrateOptions
from dpq_diffusion.calibration.processes import Diffusion, Flow, process_of
from dpq_diffusion.conditions import make_items
from dpq_diffusion.denoising import decode
from dpq_diffusion.metrics.fidelity import psnr
from dpq_diffusion.samplers import Wish, make_sampler

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
)

QUICK = {"trajectories": 3, "denoising_steps": 2, "batch": 4, "validation_samples": 6}

TEXT = ("text_to_image", "sdxl", "pixart_alpha", "flux_pipeline")
KINDS = ("pixel_dit", "latent_unet", "class_ldm", *TEXT)


@pytest.fixture(autouse=True)
def few_validation_images(monkeypatch):
    monkeypatch.setattr("dpq_diffusion.calibration.build._VALIDATION_IMAGES", 2)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a pipeline, by its name in ``diffusion_pipelines``."""

    @cache
    def make(kind):
        folder = tmp_path_factory.mktemp("pipeline") / kind
        getattr(diffusion_pipelines, kind)().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red cube\n\n  a cat \n")
    return str(path)


@pytest.fixture
def make_task(folder_of, prompts):
    """The task of an uncompressed pipeline, or of an artifact of it."""

    def make(kind, source=None, seed=0, **options):
        folder = str(folder_of(kind))
        told = {"prompts": prompts} if kind in TEXT else {}
        chosen = CalibrateOptions(**{**QUICK, **told, **options})
        return DiffusionAdapter().calibration(
            str(source or folder), folder, chosen, Run(device="cpu", seed=seed)
        )

    return make


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


@pytest.mark.parametrize("kind", ["pixel_dit", "flux_pipeline"])
@pytest.mark.parametrize("loss", ["distill", "training"])
def test_batches_are_functions_of_seed_and_step(make_task, kind, loss):
    if loss == "training":
        loss = "flow" if kind == "flux_pipeline" else "ddpm"
    one, two = make_task(kind, loss=loss), make_task(kind, loss=loss)
    later = one.train_batch(5)
    assert same(one.train_batch(0), two.train_batch(0))
    assert same(two.train_batch(5), later)
    assert not torch.equal(later[key(0)], one.train_batch(0)[key(0)])
    assert one.fingerprint == two.fingerprint
    validation = one.validation()
    assert len(validation) == 2
    assert all(same(a, b) for a, b in zip(validation, two.validation(), strict=True))
    other = make_task(kind, loss=loss, seed=1)
    assert other.fingerprint != one.fingerprint
    assert not torch.equal(other.train_batch(5)[key(0)], later[key(0)])


def test_validation_trajectories_are_not_trained_on(make_task):
    task = make_task("pixel_dit")
    seen = {x.numpy().tobytes() for step in range(40) for x in task.train_batch(step)[key(0)]}
    held = {x.numpy().tobytes() for batch in task.validation() for x in batch[key(0)]}
    assert len(seen) == 3 * 2
    assert not seen & held


@pytest.mark.parametrize(("guidance", "share"), [(1.5, 0.1), (3.0, 4 / 13), (1.0, 0.0)])
def test_null_class_is_drawn_as_often_as_its_errors_count(make_task, guidance, share):
    task = make_task("pixel_dit", guidance=guidance, batch=500)
    labels = torch.cat([task.train_batch(step)[key(2)] for step in range(4)])
    null = (labels == 3).float().mean()
    assert abs(null - share) <= 3 * math.sqrt(share * (1 - share) / 2000)
    assert set(labels.tolist()) >= {0, 1, 2}


def test_long_trajectories_are_thinned_out(make_task, monkeypatch):
    whole = make_task("pixel_dit", denoising_steps=4)
    monkeypatch.setattr(trajectories, "_MEMORY", 2 * 6 * 64 * 3 * 4)
    monkeypatch.setattr(trajectories, "_TOGETHER", 3)
    thin = make_task("pixel_dit", denoising_steps=4)
    calls = len(thin._samples.train.calls)
    assert (len(whole._samples.train.calls), calls) == (4, 2)


def test_the_models_own_class_dropout_is_off(make_task, make_artifact, folder_of):
    task = make_task("pixel_dit", make_artifact(folder_of("pixel_dit")))
    task.student.train()
    batch = task.train_batch(0)
    losses = {float(task.loss(batch).detach()) for _ in range(8)}
    assert len(losses) == 1
    task.student.eval()
    assert losses == {float(task.loss(batch).detach())}


class TestDiffusion:
    betas = torch.linspace(0.01, 0.3, 6, dtype=torch.float64)

    def restated(self, output, clean, noise, level, prediction):
        """One sample's loss by Bayes' rule, in float64; no closed form of the posterior."""
        bar = torch.cumprod(1 - self.betas, 0)
        a, b = bar[level].sqrt(), (1 - bar[level]).sqrt()
        noisy = a * clean + b * noise
        told, place = output.chunk(2)
        if prediction == "epsilon":
            target, guess = noise, (noisy - b * told) / a
        elif prediction == "v_prediction":
            target, guess = a * noise - b * clean, a * noisy - b * told
        else:
            target, guess = clean, told
        error = (told - target).square().mean()

        def posterior(start, t):
            before = bar[t - 1]
            step = (1 - self.betas[t]) / self.betas[t]
            precision = 1 / (1 - before) + step
            mean = before.sqrt() / (1 - before) * start
            mean = mean + (1 - self.betas[t]).sqrt() / self.betas[t] * noisy
            return mean / precision, 1 / precision

        low = posterior(clean, max(level, 1))[1].log()
        log_variance = (place + 1) / 2 * self.betas[level].log() + (1 - place) / 2 * low
        deviation = (log_variance / 2).exp()
        if level:
            truth = Normal(posterior(clean, level)[0], (low / 2).exp())
            bound = kl_divergence(truth, Normal(posterior(guess, level)[0], deviation))
        else:  # the mean at t = 0 is the guess itself
            model = Normal(guess, deviation)
            upper = torch.where(clean > 0.999, 1.0, model.cdf(clean + 1 / 255))
            lower = torch.where(clean < -0.999, 0.0, model.cdf(clean - 1 / 255))
            bound = -(upper - lower).clamp(min=1e-12).log()
        return error + bound.mean() / math.log(2)

    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
    def test_loss_is_that_of_the_definition(self, prediction):
        torch.manual_seed(0)
        process = Diffusion(torch.cumprod(1 - self.betas, 0), prediction)
        levels = torch.arange(6)
        clean = torch.randn(6, 2, 3, 3, dtype=torch.float64).clamp(-1, 1)
        noise = torch.randn_like(clean)
        output = torch.cat([torch.randn_like(clean), torch.rand_like(clean) * 2 - 1], 1)
        noisy = process.noised(clean, noise, levels)
        batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
        parts = [self.restated(output[i], clean[i], noise[i], i, prediction) for i in range(6)]
        for i in range(6):
            one = {name: value[i : i + 1] for name, value in batch.items()}
            torch.testing.assert_close(process.loss(output[i : i + 1], one), parts[i])
        torch.testing.assert_close(process.loss(output, batch), sum(parts) / 6)

    def test_the_bound_trains_the_variance_only(self):
        torch.manual_seed(0)
        process = Diffusion(torch.cumprod(1 - self.betas, 0), "epsilon")
        clean, noise = torch.randn(2, 4, 1, 3, 3)
        levels = torch.tensor([0, 1, 3, 5])
        noisy = process.noised(clean, noise, levels)
        batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
        output = torch.randn(4, 2, 3, 3, requires_grad=True)
        (gradient,) = torch.autograd.grad(process.loss(output, batch), output)
        torch.testing.assert_close(gradient[:, :1], 2 * (output[:, :1] - noise) / noise.numel())
        assert gradient[:, 1:].abs().min() > 0
        assert gradient.isfinite().all()

    def test_noise_is_added_as_by_the_scheduler(self):
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler()
        clean, noise = torch.randn(2, 5, 1, 4, 4)
        levels = torch.tensor([0, 1, 500, 998, 999])
        expected = scheduler.add_noise(clean, noise, levels)
        torch.testing.assert_close(process_of(scheduler).noised(clean, noise, levels), expected)

    def test_levels_are_uniform(self):
        process = Diffusion(torch.linspace(0.9999, 0.0001, 1000), "epsilon")
        levels = process.levels(20_000, torch.Generator().manual_seed(0))
        counts = torch.bincount(levels // 100, minlength=10)
        assert len(counts) == 10
        assert (counts - 2000).abs().max() < 200


def test_flow_is_the_straight_line():
    from diffusers import FlowMatchEulerDiscreteScheduler

    process = process_of(FlowMatchEulerDiscreteScheduler())
    assert isinstance(process, Flow)
    clean, noise = torch.randn(2, 3, 2, 4)
    levels = torch.tensor([0.0, 0.25, 1.0])
    noisy = process.noised(clean, noise, levels)
    torch.testing.assert_close(noisy[0], clean[0])
    torch.testing.assert_close(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    torch.testing.assert_close(noisy[2], noise[2])
    assert process.timesteps(levels).tolist() == [0, 250, 1000]
    batch = {"clean": clean, "noise": noise, "noisy": noisy, "level": levels}
    assert process.loss(noise - clean, batch) == 0
    assert process.loss(noise - clean + 1, batch) == pytest.approx(1)


def test_flux_is_told_sigmas(make_task):
    """Its pipeline divides timesteps by 1000, so the batches have to."""
    task = make_task("flux_pipeline", loss="flow")
    batch = task.train_batch(0)
    form = task._samples.train.form
    torch.testing.assert_close(batch[key(form.timestep)], batch["level"])
    torch.testing.assert_close(
        batch["noisy"], torch.lerp(batch["clean"], batch["noise"], batch["level"][:, None, None])
    )
    assert task.reference_loss() > 0


def test_ddpm_on_own_images_has_their_classes(make_task):
    task = make_task("pixel_dit", loss="ddpm", class_dropout=0.0, batch=64)
    batch, source = task.train_batch(0), task._samples.train
    pairs = {
        (clean.numpy().tobytes(), int(label))
        for clean, label in zip(batch["clean"], batch[key(2)], strict=True)
    }
    assert len(pairs) == 3  # as many as images: each has one class
    assert {label for _, label in pairs} <= {0, 1, 2}
    assert source.null[2].tolist() == [3, 3, 3]
    assert set(
        make_task("pixel_dit", loss="ddpm", class_dropout=1.0).train_batch(0)[key(2)].tolist()
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


@pytest.mark.parametrize("kind", ["pixel_dit", "class_ldm", "flux_pipeline"])
def test_all_that_is_trained_is_in_the_artifact(make_task, make_artifact, folder_of, kind):
    artifact = make_artifact(folder_of(kind))
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


def test_a_component_alone_has_no_prefix(folder_of, tmp_path):
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


@pytest.fixture
def class_images(tmp_path):
    """Two images per class, of constant colour; a class by name, one by number."""
    for number, name in enumerate(["circle", "1", "plus sign"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            level = 40 * number + i
            Image.new("RGB", (12, 10), (level,) * 3).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def test_images_get_their_folders_classes(make_task, class_images):
    task = make_task("pixel_dit", images=str(class_images), loss="ddpm", batch=64)
    seen = [task.train_batch(0), *task.validation()]
    for batch in seen:
        for clean, label in zip(batch["clean"], batch[key(2)].tolist(), strict=True):
            assert clean.shape == (1, 8, 8)
            level = round(float(clean.mean() + 1) * 127.5)
            assert label in (level // 40, 3)
    labels = seen[0][key(2)]
    assert 0 < (labels == 3).float().mean() < 0.3
    held = {float(x.mean()) for x in seen[1]["clean"]}
    assert not held & {float(x.mean()) for x in seen[0]["clean"]}
    other = make_task("pixel_dit", images=str(class_images), loss="ddpm", batch=64, seed=1)
    assert other.fingerprint != task.fingerprint


def test_images_are_centred_and_scaled(class_images, folder_of):
    for path in class_images.rglob("*.png"):
        path.unlink()
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 200
    for folder in class_images.iterdir():
        Image.fromarray(wide).save(folder / "wide.png")
    data = read_images(class_images, diffusion_pipelines.pixel_dit(), 0)
    torch.testing.assert_close(data.latents, torch.full((3, 1, 8, 8), 200 / 127.5 - 1))


def test_encoding_is_the_inverse_of_decoding():
    class Half:
        """An autoencoder that halves its input, exactly."""

        config = {"scaling_factor": 4.0, "shift_factor": 0.5}  # noqa: RUF012
        device = torch.device("cpu")

        def modules(self):
            return []

        def encode(self, x):
            return type("Output", (), {"latents": x / 2})

        def decode(self, z):
            return type("Output", (), {"sample": z * 2})

    images = torch.arange(48, dtype=torch.uint8).view(1, 4, 4, 3)
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = encode(pixels, Half(), torch.Generator())
    torch.testing.assert_close(latents, (pixels / 2 - 0.5) * 4)
    assert decode(latents, Half()).equal(images)


def test_images_pass_the_autoencoder(make_task, folder_of, class_images):
    pipeline = diffusion_pipelines.class_ldm()
    for n, folder in enumerate(sorted(class_images.iterdir())):
        folder.rename(class_images / str(n))
    data = read_images(class_images, pipeline, 0)
    assert data.latents.shape == (12, 3, 8, 8)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    task = make_task("class_ldm", images=str(class_images), loss="ddpm")
    assert task.loss(task.train_batch(0)) > 0
    assert task.train_batch(0)[key(2)].shape == (4, 1, diffusion_models.WIDTH)


def write_latents(path, count=20, shape=(1, 8, 8), **changes):
    tensors = {"latents": torch.randn(count, *shape), "labels": torch.arange(count) % 3, **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    return str(path)


def test_latents_are_taken_as_they_are(make_task, tmp_path):
    path = write_latents(tmp_path / "x.safetensors")
    task = make_task("pixel_dit", latents=path, loss="distill")
    batch = task.train_batch(0)
    assert "target" not in batch
    assert task.loss(batch) < 1e-10  # the student is the teacher
    assert all("target" in one for one in task.validation())
    write_latents(tmp_path / "x.safetensors", labels=(torch.arange(20) + 1) % 3)
    assert make_task("pixel_dit", latents=path).fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, "add a tensor `labels`"),
        ({"latents": None}, "no tensor `latents`"),
        ({"labels": torch.full((20,), 3)}, "labels must be 0..2"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, "20 whole numbers"),
        ({"shape": (1, 8, 4)}, r"latents are \[20, 1, 8, 4\], the denoiser takes \[N, 1, 8, 8\]"),
        ({"latents": torch.full((20, 1, 8, 8), math.nan)}, "NaN"),
        ({"count": 1}, "at least 2"),
    ],
)
def test_wrong_latents_are_refused(make_task, tmp_path, changes, words):
    path = write_latents(tmp_path / "x.safetensors", **changes)
    with pytest.raises(DPQError, match=words) as caught:
        make_task("pixel_dit", latents=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("text_to_image", {"prompts": ""}, "give --prompts FILE"),
        ("text_to_image", {"prompts": "", "images": "x"}, "give --prompts FILE"),
        ("text_to_image", {"prompts": "missing.txt"}, "missing.txt: cannot be read"),
        ("pixel_dit", {"prompts": "x"}, "draws classes, not prompts"),
        ("pixel_dit", {"loss": "flow"}, "--loss flow does not fit .*; ddpm does"),
        ("flux_pipeline", {"loss": "ddpm"}, "--loss ddpm does not fit .*; flow does"),
        ("pixel_dit", {"images": "missing"}, "no such folder"),
        ("pixel_dit", {"latents": "missing"}, "cannot be read"),
        ("latent_unet", {"guidance": 2.0}, "--guidance 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_task, kind, options, words):
    with pytest.raises(DPQError, match=words) as caught:
        make_task(kind, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "l1"}, "--loss must be one of distill, ddpm, flow"),
        ({"images": "a", "latents": "b"}, "exclude each other"),
        ({"batch": 0}, "--batch must be 1 or more"),
        ({"guidance": math.nan}, "--guidance"),
        ({"class_dropout": 1.5}, "--class-dropout"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(DPQError, match=words):
        CalibrateOptions(**options)


def test_unknown_sub_folders_are_refused(make_task, class_images):
    (class_images / "circle").rename(class_images / "circel")
    with pytest.raises(DPQError, match=r"sub-folder 'circel': unknown class; did you mean"):
        make_task("pixel_dit", images=str(class_images))


def test_folders_by_other_names_count_in_order(class_images):
    for name, wnid in {"circle": "n02", "1": "n01", "plus sign": "n03"}.items():
        (class_images / name).rename(class_images / wnid)
    data = read_images(class_images, diffusion_pipelines.pixel_dit(), 0)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (data.latents[:4] + 1).mean() * 127.5 == pytest.approx(41.5, abs=0.1)


def test_another_original_is_refused(make_artifact, folder_of, tmp_path):
    diffusion_pipelines.pixel_dit(side=4).save_pretrained(tmp_path)
    with pytest.raises(DPQError, match="sample_size is 4, of the artifact 8"):
        DiffusionAdapter().calibration(
            str(make_artifact(folder_of("pixel_dit"))),
            str(tmp_path),
            CalibrateOptions(**QUICK),
            Run(device="cpu"),
        )


@pytest.mark.parametrize(
    "kind",
    [
        "pixel_dit",
        pytest.param("class_ldm", marks=pytest.mark.slow),
        pytest.param("flux_pipeline", marks=pytest.mark.slow),
    ],
)
def test_calibrating_an_artifact_brings_it_closer(
    make_artifact, folder_of, prompts, tmp_path, kind
):
    told = {"prompts": prompts} if kind in TEXT else {}
    command = Command(
        settings=CalibrateSettings(steps=4, block_steps=1, block_batches=1, estep="icm"),
        adapter=CalibrateOptions(**QUICK, **told),
    )
    done = calibrate_artifact(
        DiffusionAdapter(),
        make_artifact(folder_of(kind)),
        tmp_path / "out",
        command,
        Run(device="cpu"),
    )
    assert done.report.after < 0.9 * done.report.before
    assert abs(done.nbytes - done.nbytes_before) < 200  # numbers in the manifest
    again = DiffusionAdapter().calibration(
        str(tmp_path / "out"), str(folder_of(kind)), command.adapter, Run(device="cpu")
    )
    losses = [float(again.loss(batch).detach()) for batch in again.validation()]
    assert sum(losses) / len(losses) == pytest.approx(done.report.after, rel=1e-3)


def test_compressing_with_data_looks_at_all_layers(folder_of, tmp_path):
    source = str(folder_of("pixel_dit"))
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


@pytest.mark.slow
def test_calibration_without_data_recovers_most_of_the_builtin(tmp_path):
    """At 2 bits, in a few steps: the loss on other trajectories, and images at the same seeds."""
    adapter, run = DiffusionAdapter(), Run(device="cpu")
    source = "builtin:tiny-dit"
    compress(adapter, source, tmp_path / "before", QuantSpec.preset(2), run=run)
    command = Command(
        settings=CalibrateSettings(steps=16, mode="end", estep="icm"),
        adapter=CalibrateOptions(
            trajectories=10, denoising_steps=10, batch=16, validation_samples=32
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
    sampler = make_sampler(pipeline, Wish(steps=10, guidance=1.0))
    return sampler.draw(make_items(sampler.conditions((), ()), 10, 0))
