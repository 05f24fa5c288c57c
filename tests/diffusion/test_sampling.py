"""Images from tiny pipelines: reproducible, resumable, guided by the right null class."""

from __future__ import annotations

import json
from pathlib import Path

import diffusion_pipelines
import numpy as np
import pytest
import torch
from PIL import Image

from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_diffusion.options import SampleOptions
from dpq_diffusion.sampling import sample as sampling
from dpq_diffusion.sampling.sample import sample

RUN = Run(device="cpu", seed=0)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
)


@pytest.fixture
def models(monkeypatch) -> dict:
    """Source name -> pipeline, in place of what lies on disk."""
    known: dict = {}
    monkeypatch.setattr(sampling, "load_pipeline", lambda source, run: known[source])
    return known


@pytest.fixture
def dit(models) -> str:
    models["dit"] = diffusion_pipelines.pixel_dit()
    return "dit"


def draw(source: str, out: Path, run: Run = RUN, **options) -> dict[str, bytes]:
    """Sample in four steps; the PNG files by name."""
    sample(source, SampleOptions(**{"sampling_steps": 4, "columns": 2} | options), run, out)
    return {path.name: path.read_bytes() for path in sorted((out / "images").glob("*.png"))}


def pixels(out: Path) -> torch.Tensor:
    """All images of a folder, int16 ``[N, H, W]`` or with channels."""
    paths = sorted((out / "images").glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(p), dtype=np.int16)) for p in paths])


def test_the_same_seed_gives_the_same_files(dit, tmp_path):
    first, second = draw(dit, tmp_path / "a"), draw(dit, tmp_path / "b")
    assert first == second
    assert len(first) == 6  # three classes, two columns
    other = draw(dit, tmp_path / "c", Run(device="cpu", seed=100))
    assert not set(first.values()) & set(other.values())


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmsolver++"])
def test_the_batch_size_changes_nothing_but_rounding(dit, tmp_path, scheduler):
    for size in (1, 4):
        draw(dit, tmp_path / str(size), scheduler=scheduler, batch_size=size, count=5)
    one, four = pixels(tmp_path / "1"), pixels(tmp_path / "4")
    assert (one - four).abs().max() <= 1
    assert one.float().std() > 5


def test_an_image_can_be_drawn_again_alone(dit, tmp_path):
    draw(dit, tmp_path / "all", count=6)
    draw(dit, tmp_path / "one", Run(device="cpu", seed=4), label=("square",), count=1)
    assert (pixels(tmp_path / "all")[4] - pixels(tmp_path / "one")[0]).abs().max() <= 1


def test_images_know_their_class_and_seed(dit, tmp_path):
    draw(dit, tmp_path, Run(device="cpu", seed=7))
    with Image.open(tmp_path / "images" / "000002.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.text == {"seed": "9", "class": "2", "name": "cross, plus sign"}


def test_deleted_images_come_back_byte_for_byte(dit, models, tmp_path):
    whole = draw(dit, tmp_path, count=7, batch_size=3)
    kept = tmp_path / "images" / "000001.png"
    before = kept.stat().st_mtime_ns
    for index in (0, 5, 6):
        (tmp_path / "images" / f"00000{index}.png").unlink()
    drawn = []
    _count_draws(models[dit], drawn)
    assert draw(dit, tmp_path, count=7, batch_size=3) == whole
    assert kept.stat().st_mtime_ns == before
    assert max(drawn) == 2 * 3  # guided batches of three, cut as in an uninterrupted run
    assert len(drawn) == 3 * 4


def test_nothing_is_drawn_twice(dit, models, tmp_path):
    draw(dit, tmp_path)
    drawn: list[int] = []
    _count_draws(models[dit], drawn)
    draw(dit, tmp_path)
    assert drawn == []
    assert len(draw(dit, tmp_path, count=8)) == 8


def _count_draws(pipeline, sizes: list[int]) -> None:
    pipeline.transformer.register_forward_pre_hook(lambda model, args: sizes.append(len(args[0])))


@pytest.mark.parametrize(
    ("options", "seed", "named"),
    [
        ({"sampling_steps": 5}, 0, "steps: 4, not 5"),
        ({"guidance": 2.0}, 0, "guidance: 1.5, not 2.0"),
        ({"scheduler": "ddpm"}, 0, "scheduler: ddim, not ddpm"),
        ({"label": ("1",)}, 0, "conditions: circle, square, cross, plus sign, not square"),
        ({}, 1, "seed: 0, not 1"),
    ],
    ids=["steps", "guidance", "scheduler", "label", "seed"],
)
def test_a_folder_is_not_mixed(dit, tmp_path, options, seed, named):
    before = draw(dit, tmp_path)
    with pytest.raises(SpecError) as caught:
        draw(dit, tmp_path, Run(device="cpu", seed=seed), **options)
    assert f"holds samples of other settings ({named})" in str(caught.value)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "images").iterdir()}


def test_a_folder_is_not_mixed_with_other_weights(dit, models, tmp_path):
    draw(dit, tmp_path)
    diffusion_pipelines.disturbed(models[dit])
    with pytest.raises(SpecError, match=r"other settings \(model: "):
        draw(dit, tmp_path)


def test_a_folder_of_foreign_images_is_left_alone(dit, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").write_bytes(b"")
    with pytest.raises(SpecError, match="holds images already; give another folder"):
        draw(dit, tmp_path)


def test_the_npz_holds_the_images(dit, tmp_path):
    draw(dit, tmp_path, npz=True, count=5)
    with np.load(tmp_path / "samples.npz") as file:
        assert file.files == ["arr_0"]
        images = file["arr_0"]
    assert (images.shape, images.dtype) == ((5, 8, 8, 3), np.uint8)
    assert np.array_equal(images[..., 1], pixels(tmp_path).numpy().astype(np.uint8))


def test_the_grid_is_a_picture_of_all_rows(dit, tmp_path):
    made = sample(dit, SampleOptions(sampling_steps=2, columns=3), RUN, tmp_path)
    assert made.files == (tmp_path / "grid.png",)
    with Image.open(made.files[0]) as image:
        assert image.mode == "RGB"
        assert image.height > 3 * 84
        assert image.width >= 480
        assert len(image.getcolors(1 << 20)) > 20


def test_before_and_after(dit, models, tmp_path):
    models["compressed"] = diffusion_pipelines.disturbed(diffusion_pipelines.pixel_dit())
    options = SampleOptions(sampling_steps=4, columns=2, baseline=dit)
    made = sample("compressed", options, RUN, tmp_path / "out")
    assert [path.name for path in made.files] == ["before-after.png", "grid.png"]
    plain = draw(dit, tmp_path / "plain")
    twins = tmp_path / "out" / "baseline" / "images"
    assert {p.name: p.read_bytes() for p in twins.iterdir()} == plain
    with Image.open(made.files[0]) as both, Image.open(made.files[1]) as one:
        assert both.height > 1.5 * one.height
    again = SampleOptions(sampling_steps=4, columns=2, baseline=str(tmp_path / "plain"))
    del models[dit]  # a folder of samples needs no model
    sample("compressed", again, RUN, tmp_path / "again")
    grids = [(tmp_path / name / "before-after.png").read_bytes() for name in ("out", "again")]
    assert grids[0] == grids[1]


def test_a_baseline_of_other_seeds_is_refused(dit, tmp_path):
    draw(dit, tmp_path / "plain", Run(device="cpu", seed=3))
    with pytest.raises(SpecError, match=r"drawn otherwise \(seed: 3, not 0\)"):
        draw(dit, tmp_path / "out", baseline=str(tmp_path / "plain"))


def test_a_baseline_with_too_few_images_is_refused(dit, tmp_path):
    draw(dit, tmp_path / "plain", count=2)
    with pytest.raises(SourceError, match=r"000002.png: missing, with 4 in all"):
        draw(dit, tmp_path / "out", baseline=str(tmp_path / "plain"))


def test_the_settings_are_stored(dit, tmp_path):
    draw(dit, tmp_path, scheduler="dpmsolver++", guidance=2)
    stored = json.loads((tmp_path / "settings.json").read_text())
    assert stored["settings"] == {
        "scheduler": "dpmsolver++",
        "steps": 4,
        "guidance": 2,
        "guided_channels": 0,
    }
    assert (stored["source"], stored["seed"], len(stored["conditions"])) == (dit, 0, 3)


def test_many_classes_are_thinned_for_a_grid_only(models, tmp_path):
    names = tuple(f"kind {i}" for i in range(40))
    models["many"] = diffusion_pipelines.pixel_dit(classes=names)
    assert len(draw("many", tmp_path / "grid", sampling_steps=1, columns=1)) == 8
    assert len(draw("many", tmp_path / "all", sampling_steps=1, count=41)) == 41
    stored = json.loads((tmp_path / "all" / "settings.json").read_text())
    assert [c["label"] for c in stored["conditions"]] == list(range(40))


@pytest.mark.parametrize(
    ("make", "channels", "side"),
    [("latent_dit", 3, 8), ("latent_unet", 3, 16), ("text_to_image", 3, 8)],
)
def test_every_kind_of_pipeline(models, tmp_path, make, channels, side):
    models[make] = getattr(diffusion_pipelines, make)()
    options = {"prompt": ("a cat", "a dog")} if make == "text_to_image" else {}
    first = draw(make, tmp_path / "a", **options)
    assert first == draw(make, tmp_path / "b", **options)
    draw(make, tmp_path / "c", batch_size=1, **options)
    images = pixels(tmp_path / "a")
    assert images.shape[3] == channels
    assert len(images) == len(first)
    assert (images - pixels(tmp_path / "c")).abs().max() <= 1


def test_samples_need_a_folder(dit):
    with pytest.raises(SpecError, match="a folder; give output"):
        sample(dit, SampleOptions(), RUN, None)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("pixel_dit", {"label": ("3",)}, "label=3: the model has the classes 0 to 2"),
        ("pixel_dit", {"label": ("-1",)}, "label=-1: the model has the classes 0 to 2"),
        ("pixel_dit", {"label": ("circel",)}, "unknown class; did you mean circle?"),
        ("pixel_dit", {"prompt": ("a cat",)}, "draws classes, not prompts"),
        ("pixel_dit", {"sampling_steps": 1001}, "the model was trained with 1000 steps"),
        ("latent_unet", {"guidance": 2.0}, "guidance=2.0: the model has no classes to guide by"),
        ("latent_unet", {"label": ("0",)}, "the model is unconditional"),
        ("text_to_image", {}, "nothing to draw; give prompt"),
        ("text_to_image", {"label": ("0",)}, "draws prompts, not classes"),
    ],
)
def test_mistakes_are_one_line(models, tmp_path, make, options, message):
    models[make] = getattr(diffusion_pipelines, make)()
    with pytest.raises(SpecError) as caught:
        draw(make, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nan_weights_are_one_line(dit, models, tmp_path):
    models[dit].transformer.proj_out_2.weight.data[0, 0] = float("nan")
    with pytest.raises(SourceError, match="NaN or infinity at step 1 of 4"):
        draw(dit, tmp_path)
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "dpm"}, "scheduler='dpm': unknown scheduler; did you mean ddpm? known"),
        ({"guidance": -1.0}, "guidance=-1.0: must be a number of 0 or more"),
        ({"guidance": float("nan")}, "guidance=nan: must be a number of 0 or more"),
        ({"columns": 0}, "columns=0: must be 1 or more"),
        ({"sampling_steps": -1}, "sampling_steps=-1: must be 0 or more"),
        ({"batch_size": 0}, "batch_size=0: must be 1 or more"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(SpecError) as caught:
        SampleOptions(**options)
    assert message in str(caught.value)
