"""Images, latents and options for calibrating denoisers."""

from __future__ import annotations

import math

import diffusion_models
import diffusion_pipelines
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dpq_core.errors import DPQError
from dpq_diffusion.calibration.calls import slot_key
from dpq_diffusion.calibration.data import encode, read_images
from dpq_diffusion.options import CalibrateOptions
from dpq_diffusion.pipelines.denoising import decode

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
)


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
    task = make_task("pixel_dit", images=str(class_images), loss="ddpm", batch_size=64)
    seen = [task.train_batch(0), *task.validation()]
    for batch in seen:
        for clean, label in zip(batch["clean"], batch[slot_key(2)].tolist(), strict=True):
            assert clean.shape == (1, 8, 8)
            level = round(float(clean.mean() + 1) * 127.5)
            assert label in (level // 40, 3)
    labels = seen[0][slot_key(2)]
    assert 0 < (labels == 3).float().mean() < 0.3
    held = {float(x.mean()) for x in seen[1]["clean"]}
    assert not held & {float(x.mean()) for x in seen[0]["clean"]}
    other = make_task("pixel_dit", images=str(class_images), loss="ddpm", batch_size=64, seed=1)
    assert other.fingerprint != task.fingerprint


def test_images_are_centred_and_scaled(class_images, pipeline_of):
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


@pytest.mark.slow
def test_images_pass_the_autoencoder(make_task, pipeline_of, class_images):
    pipeline = diffusion_pipelines.class_ldm()
    for n, folder in enumerate(sorted(class_images.iterdir())):
        folder.rename(class_images / str(n))
    data = read_images(class_images, pipeline, 0)
    assert data.latents.shape == (12, 3, 8, 8)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    task = make_task("class_ldm", images=str(class_images), loss="ddpm")
    assert task.loss(task.train_batch(0)) > 0
    assert task.train_batch(0)[slot_key(2)].shape == (4, 1, diffusion_models.WIDTH)


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
        ("text_to_image", {"prompts": ""}, "give prompts, a file"),
        ("text_to_image", {"prompts": "", "images": "x"}, "give prompts, a file"),
        ("text_to_image", {"prompts": "missing.txt"}, "prompts='missing.txt': cannot be read"),
        ("pixel_dit", {"prompts": "x"}, "draws classes, not prompts"),
        ("pixel_dit", {"loss": "flow"}, "loss='flow': does not fit .*; ddpm does"),
        ("flux_pipeline", {"loss": "ddpm"}, "loss='ddpm': does not fit .*; flow does"),
        ("pixel_dit", {"images": "missing"}, "no such folder"),
        ("pixel_dit", {"latents": "missing"}, "cannot be read"),
        ("latent_unet", {"guidance": 2.0}, "guidance=2"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_task, kind, options, words):
    with pytest.raises(DPQError, match=words) as caught:
        make_task(kind, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "l1"}, "loss='l1': must be one of distill, ddpm, flow"),
        ({"images": "a", "latents": "b"}, "choose one of images, latents and prompts"),
        ({"batch_size": 0}, "batch_size=0: must be 1 or more"),
        ({"guidance": math.nan}, "guidance=nan: must be a number of 0 or more"),
        ({"class_dropout": 1.5}, "class_dropout=1.5: must be 0..1"),
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
