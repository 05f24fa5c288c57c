"""``dpq eval`` of splat scenes: pictures, attributes, bits, and what cannot be measured."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from splat_files import SPLATS, changed
from splat_views import HEIGHT, WIDTH, draw, photographed, visible_scene, write_cameras

from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_gaussian.cameras import read_cameras
from dpq_gaussian.evaluation.evaluate import evaluate
from dpq_gaussian.formats import read_scene, write_scene
from dpq_gaussian.options import EvaluateOptions
from dpq_gaussian.rendering import RenderOptions, Splats
from dpq_gaussian.rendering.reference import render_reference

RUN = Run(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """scene.ply, and files of it: one with noise, one reordered .spz, one turned."""
    folder = photographed(tmp_path_factory.mktemp("photographed"))
    scene = read_scene(folder / "scene.ply").scene
    noise = np.random.default_rng(1).normal(0, 0.05, scene.sh_dc.shape)
    noisy = changed(scene, sh_dc=(scene.sh_dc + noise).astype(np.float32))
    write_scene(noisy, folder / "noisy.ply", "ply")
    shuffled = scene.take(np.random.default_rng(2).permutation(len(scene)))
    write_scene(shuffled, folder / "shuffled.spz", "spz", axes="rdf")
    write_scene(shuffled, folder / "specified.spz", "spz")
    return folder


def measured(path, **options):
    found = evaluate(str(path), EvaluateOptions(**options), RUN)
    return found, {metric.name: metric for metric in found.metrics}


def given(folder, **options):
    return {"baseline": str(folder / "scene.ply"), "cameras": str(folder), **options}


def test_pictures_of_every_held_out_view_are_compared(folder):
    found, metrics = measured(folder / "noisy.ply", **given(folder))
    assert found.details["views"] == ["v0", "v8"]
    scenes = [read_scene(folder / name).scene for name in ("noisy.ply", "scene.ply")]
    cameras = [camera for camera in read_cameras(folder) if camera.name in ("v0", "v8")]
    expected = []
    for camera in cameras:
        mine, original = (draw(scene, camera).astype(np.float64) for scene in scenes)
        expected.append(-10 * math.log10(np.square(mine - original).mean()))
    assert found.details["per_view"]["PSNR to the original"] == pytest.approx(expected, rel=1e-9)
    assert metrics["PSNR to the original"].value == pytest.approx(np.mean(expected), rel=1e-9)
    assert 0.8 < metrics["SSIM to the original"].value < 1
    for word in ("2 held-out views (every 8th of 9)", "48x36", "black background", "CPU"):
        assert word in metrics["PSNR to the original"].protocol


def test_photographs_judge_the_scene_itself(folder):
    _, original = measured(folder / "scene.ply", cameras=str(folder))
    # Photographs are rounded to 8 bits: an error of 1 / 12 of a squared level, none in the sky.
    psnr = original["PSNR to the photographs"].value
    assert 0 < psnr - 10 * math.log10(255**2 * 12) < 4
    assert original["SSIM to the photographs"].value > 0.99
    assert "PSNR to the original" not in original
    _, noisy = measured(folder / "noisy.ply", **given(folder))
    assert noisy["PSNR to the photographs"].value < psnr - 5


def test_the_psnr_of_identical_pictures_is_infinite_and_they_are_counted(folder):
    found, metrics = measured(folder / "scene.ply", **given(folder))
    assert metrics["PSNR to the original"].value == math.inf
    assert "2 of 2 views identical and left out" in metrics["PSNR to the original"].protocol
    assert metrics["SSIM to the original"].value == pytest.approx(1)
    names = ("positions", "scales", "rotations", "opacity", "color", "harmonics")
    assert [metrics[f"error of {name}"].value for name in names] == pytest.approx([0] * 6, abs=1e-5)
    assert any(note.startswith("LPIPS left out") for note in found.notes)
    assert any(note.startswith("encode seconds left out") for note in found.notes)


def test_errors_and_bits_are_those_of_the_file(folder):
    _, metrics = measured(folder / "noisy.ply", **given(folder, limit=1))
    scene, noisy = (read_scene(folder / name).scene for name in ("scene.ply", "noisy.ply"))
    rms = np.sqrt(np.square(noisy.sh_dc.astype(np.float64) - scene.sh_dc).mean())
    assert metrics["error of color"].value == pytest.approx(rms, rel=1e-6)
    assert metrics["error of positions"].value == 0
    bits = 8 * (folder / "noisy.ply").stat().st_size / len(scene)
    assert metrics["bits per Gaussian"].value == pytest.approx(bits)
    assert metrics["decode seconds"].value > 0


@pytest.mark.parametrize("name", ["shuffled.spz", "specified.spz"])
def test_other_orders_and_axes_do_not_matter(folder, name):
    found, metrics = measured(folder / name, **given(folder, limit=1))
    assert metrics["PSNR to the original"].value > 35
    assert metrics["error of positions"].value < 1e-3
    assert metrics["error of color"].value < 0.02
    turned = any("turned by 180 degrees" in note for note in found.notes)
    assert turned == (name == "shuffled.spz")
    _, same = measured(folder / name, **given(folder, limit=1))
    assert same["PSNR to the original"] == metrics["PSNR to the original"]


def test_axes_can_be_said(folder):
    _, metrics = measured(folder / "shuffled.spz", **given(folder, limit=1, axes="rdf"))
    assert metrics["PSNR to the original"].value > 35


def test_further_files_are_measured_alike(folder):
    others = tuple(str(folder / name) for name in ("shuffled.spz", "scene.ply"))
    found, metrics = measured(folder / "noisy.ply", **given(folder, limit=1, against=others))
    assert tuple(found.others) == others
    alone, expected = measured(folder / "shuffled.spz", **given(folder, limit=1))
    other = {metric.name: metric for metric in found.others[others[0]].metrics}
    for name in ("PSNR to the original", "PSNR to the photographs", "bits per Gaussian"):
        assert other[name] == expected[name]
        assert other[name].protocol == metrics[name].protocol
    assert found.others[others[0]].details == alone.details


def test_a_pruned_file_is_compared_and_pays_for_the_whole_scene(folder, tmp_path):
    scene = read_scene(folder / "scene.ply").scene
    write_scene(scene.take(slice(0, 290)), tmp_path / "pruned.ply", "ply")
    _, metrics = measured(tmp_path / "pruned.ply", **given(folder, limit=1))
    assert metrics["error of harmonics"].value == 0
    bits = 8 * (tmp_path / "pruned.ply").stat().st_size / 300
    assert metrics["bits per Gaussian"].value == pytest.approx(bits)


def test_attributes_of_what_was_merged_are_not_compared(folder, tmp_path):
    scene = read_scene(folder / "scene.ply").scene
    write_scene(scene.take(slice(0, 100)), tmp_path / "few.ply", "ply")
    found, metrics = measured(tmp_path / "few.ply", **given(folder, limit=1))
    assert "error of color" not in metrics
    (note,) = (note for note in found.notes if "not compared" in note)
    assert note == f"{tmp_path / 'few.ply'}: attributes not compared: 100 Gaussians against 300"


def test_without_cameras_the_rig_is_used(folder):
    found, metrics = measured(
        folder / "noisy.ply", baseline=str(folder / "scene.ply"), limit=2, pixels=32
    )
    protocol = metrics["PSNR to the original"].protocol
    assert "2 views of the rig, 32x32" in protocol
    assert all(name.startswith("rig-") for name in found.details["views"])
    assert "no photographs: quality is fidelity to the original" in found.notes
    assert not any("photographs" in name for name in metrics)


def test_all_views_some_views_smaller_views(folder):
    found, _ = measured(folder / "noisy.ply", **given(folder, all_cameras=True))
    assert found.details["views"] == [f"v{at}" for at in range(9)]
    found, metrics = measured(
        folder / "noisy.ply", **given(folder, all_cameras=True, limit=3, downscale=2.0)
    )
    assert found.details["views"] == ["v0", "v3", "v6"]
    protocol = metrics["PSNR to the photographs"].protocol
    assert "3 of the 9 views of" in protocol
    assert f"{WIDTH // 2}x{HEIGHT // 2}" in protocol


def test_encode_seconds(folder):
    found, metrics = measured(folder / "shuffled.spz", **given(folder, limit=1, encode="balanced"))
    assert metrics["encode seconds"].value > 0
    assert "written as spz by dpq" in metrics["encode seconds"].protocol
    assert not any("encode" in note for note in found.notes)


def test_the_background_is_drawn(folder):
    _, black = measured(folder / "scene.ply", cameras=str(folder), limit=1)
    _, white = measured(folder / "scene.ply", cameras=str(folder), limit=1, background="white")
    assert white["PSNR to the photographs"].value < black["PSNR to the photographs"].value
    assert "white background" in white["PSNR to the photographs"].protocol


def test_nothing_to_compare_with(folder):
    with pytest.raises(SpecError, match=r"nothing to compare with; give baseline \("):
        measured(folder / "scene.ply")
    poses = write_cameras(folder / "poses")
    with pytest.raises(SpecError, match="or cameras with photographs"):
        measured(folder / "scene.ply", cameras=str(poses))
    _, metrics = measured(folder / "noisy.ply", **given(folder, cameras=str(poses)))
    assert "PSNR to the original" in metrics


def test_another_scene_is_refused(folder, tmp_path):
    scene = visible_scene(seed=3)
    far = changed(scene, positions=scene.positions + np.float32(100))
    write_scene(far, tmp_path / "far.ply", "ply")
    with pytest.raises(SourceError, match=r"far.ply is not a file of .*: only 0% of"):
        measured(tmp_path / "far.ply", **given(folder, limit=1))
    with pytest.raises(SourceError, match=r"far.ply is not a file of"):
        measured(
            folder / "noisy.ply", **given(folder, limit=1, against=(str(tmp_path / "far.ply"),))
        )


def test_cameras_that_see_nothing(folder, tmp_path):
    away = write_cameras(tmp_path / "away", distance=-8.0)
    with pytest.raises(SourceError, match=r"none of the 2 cameras sees anything of .*scene.ply"):
        measured(folder / "noisy.ply", **given(folder, cameras=str(away)))


def test_a_blind_camera_is_left_out(folder, tmp_path):
    path = write_cameras(tmp_path / "some", count=17)
    ordered = sorted(f"v{at}" for at in range(17))
    before, after = path.read_text().split(f'"{ordered[8]}"')
    path.write_text(before + f'"{ordered[8]}"' + after.replace("8.0]", "-8.0]", 1))
    found, metrics = measured(folder / "noisy.ply", **given(folder, cameras=str(path)))
    assert "1 of 3 cameras see nothing; left out" in found.notes
    assert len(found.details["views"]) == 2
    assert "1 of them blind and left out" in metrics["PSNR to the original"].protocol


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -1}, "limit=-1: must be 0 to"),
        ({"pixels": 8}, "pixels=8: must be 16 to"),
        ({"downscale": 0.5}, "downscale=0.5: must be 1 to"),
        ({"all_cameras": True}, "all_cameras: a rig has no held-out views; give cameras with it"),
        ({"encode": "tiny"}, "encode='tiny': must be one of"),
        ({"background": "plaid"}, "is no colour"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(SpecError, match=message):
        EvaluateOptions(**options)


def test_photographs_are_fitted(folder, tmp_path):
    for name in ("cameras.json", "scene.ply"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    images = tmp_path / "images"
    images.mkdir()
    with pytest.raises(SpecError, match="nothing to compare with"):
        measured(tmp_path / "scene.ply", cameras=str(tmp_path))
    whole = Image.open(folder / "images" / "v0.png")
    whole.save(images / "v0.png")
    with pytest.raises(SourceError, match="no photograph of view 'v8' and 0 more of 2"):
        measured(tmp_path / "scene.ply", cameras=str(tmp_path))
    whole.resize((2 * WIDTH, 2 * HEIGHT)).save(images / "v8.png")
    _, metrics = measured(tmp_path / "scene.ply", cameras=str(tmp_path))
    assert (
        f"{WIDTH}x{HEIGHT} to {2 * WIDTH}x{2 * HEIGHT}"
        in metrics["PSNR to the photographs"].protocol
    )
    whole.resize((HEIGHT, WIDTH)).save(images / "v8.png")
    with pytest.raises(SourceError, match=r"v8.png: 36 x 48 pixels, but its camera has 48 x 36"):
        measured(tmp_path / "scene.ply", cameras=str(tmp_path))
    (images / "v8.png").write_text("no picture")
    with pytest.raises(SourceError, match=r"v8.png: not a readable photograph"):
        measured(tmp_path / "scene.ply", cameras=str(tmp_path))


def test_transparent_photographs_lie_on_the_background(folder):
    from dpq_gaussian.cameras.photographs import photograph

    camera = read_cameras(folder)[0]
    path = folder / "clear.png"
    Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 51)).save(path)
    clear = dataclasses.replace(camera, image=path)
    picture = photograph(clear, (0.0, 0.5, 1.0))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert torch.allclose(picture[0, 0], torch.tensor([0.2, 0.4, 0.8]))
    mean = photograph(dataclasses.replace(camera, width=1, height=1), (0, 0, 0))
    levels = np.asarray(Image.open(camera.image).convert("RGB"), np.float64)
    assert mean[0, 0].numpy() == pytest.approx(levels.mean((0, 1)) / 255, abs=1 / 255)


def test_what_spz_loses_is_what_the_reference_renderer_sees(folder):
    """The numbers of an .spz follow from pictures that nothing of ``evaluate`` drew."""
    _, metrics = measured(folder / "specified.spz", **given(folder, limit=1))
    (view,) = [camera for camera in read_cameras(folder) if camera.name == "v0"]
    pictures = []
    for name in ("specified.spz", "scene.ply"):
        drawn = render_reference(splats_of(read_scene(folder / name).scene), view, RenderOptions())
        pictures.append(drawn.colour.clamp(0, 1))
    photograph = np.asarray(Image.open(view.image), np.float64) / 255
    for metric, other in (("original", pictures[1].numpy()), ("photographs", photograph)):
        expected = -10 * math.log10(np.square(pictures[0].numpy() - other).mean())
        assert metrics[f"PSNR to the {metric}"].value == pytest.approx(expected, abs=0.01)


def splats_of(scene):
    return Splats(**{n: torch.tensor(a, dtype=torch.float64) for n, a in scene.arrays().items()})


@pytest.mark.slow
@pytest.mark.needs_data("splats/miku_sh3.ply", "splats/miku_scene")
def test_numbers_of_the_photographed_scene(tmp_path):
    """SPZ loses what an independent rasteriser found: 37.0 dB to the original, 29.01 to photos."""
    source = SPLATS / "miku_sh3.ply"
    write_scene(read_scene(source).scene, tmp_path / "scene.spz", "spz", axes="rdf")
    _, metrics = measured(
        tmp_path / "scene.spz", baseline=str(source), cameras=str(SPLATS / "miku_scene")
    )
    assert metrics["PSNR to the original"].value == pytest.approx(37.0, abs=0.15)
    assert metrics["PSNR to the photographs"].value == pytest.approx(29.01, abs=0.15)
