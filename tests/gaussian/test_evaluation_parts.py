"""Metrics of pictures, LPIPS, and the matching of Gaussians, each against an oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from splat_files import changed, make_scene
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from dpq_core.errors import SourceError, SpecError
from dpq_gaussian.evaluation.attributes import angles, attribute_errors
from dpq_gaussian.evaluation.lpips import LPIPS, load_lpips
from dpq_gaussian.evaluation.matching import match, overlap
from dpq_gaussian.evaluation.metrics import psnr, score, ssim


def pictures(height=24, width=20, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(height, width, 3, generator=generator)
    return reference + noise * torch.randn(height, width, 3, generator=generator), reference


def test_psnr_of_a_known_error():
    reference = torch.full((4, 5, 3), 0.5)
    assert psnr(reference + 0.1, reference) == pytest.approx(20, abs=1e-5)
    assert psnr(reference, reference) == math.inf


def test_ssim_is_that_of_wang_et_al():
    """Gaussian window of 11 pixels, sigma 1.5, mirrored borders, pixel by pixel."""
    picture, reference = (image.clamp(0, 1).double() for image in pictures(13, 12))
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    x, y = (
        np.pad(image.numpy(), ((5, 5), (5, 5), (0, 0)), mode="reflect")
        for image in (picture, reference)
    )
    values = []
    for row, column, channel in np.ndindex(13, 12, 3):
        a, b = (v[row : row + 11, column : column + 11, channel] for v in (x, y))
        ma, mb = (window * a).sum(), (window * b).sum()
        va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
        vab = (window * a * b).sum() - ma * mb
        luminance = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
        values.append(luminance * (2 * vab + 9e-4) / (va + vb + 9e-4))
    assert ssim(picture, reference) == pytest.approx(np.mean(values), rel=1e-6)


def test_pictures_are_clamped_before_they_are_compared():
    _, reference = pictures()
    bright = torch.where(reference > 0.5, 7.0, reference)
    capped = torch.where(reference > 0.5, 1.0, reference)
    assert score(bright, reference) == score(capped, reference)


def test_pictures_that_cannot_be_compared():
    with pytest.raises(SpecError, match=r"cannot be compared; expected two equal shapes"):
        psnr(torch.zeros(4, 5, 3), torch.zeros(5, 4, 3))
    with pytest.raises(SpecError, match="SSIM needs images of at least 6 x 6 pixels, not 9 x 5"):
        ssim(torch.zeros(5, 9, 3), torch.zeros(5, 9, 3))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """Weights under torchvision's names, random but of a size that keeps features alive."""
    network = LPIPS()
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in network.features.state_dict().items():
        gain = 0.0 if name.endswith("bias") else (2 / tensor[0].numel()) ** 0.5
        state[f"features.{name}"] = gain * torch.randn(tensor.shape, generator=generator)
    state["classifier.0.weight"] = torch.zeros(2)  # is in the published file, and not needed
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(state, path)
    return path, state


@pytest.mark.slow
def test_lpips_is_that_of_torchmetrics(vgg, monkeypatch):
    path, state = vgg
    picture, reference = (image.clamp(0, 1) for image in pictures(40, 33))

    def features(net, pretrained):
        layers = [*LPIPS().features, nn.MaxPool2d(2)]
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        network = nn.Sequential(*layers)
        names = {k.removeprefix("features."): v for k, v in state.items() if "features" in k}
        network.load_state_dict(names)
        return network

    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", features)
    oracle = torchmetrics_lpips._NoTrainLpips(net="vgg")
    planes = (image.permute(2, 0, 1)[None] for image in (picture, reference))
    expected = oracle(*planes, normalize=True).item()
    lpips = load_lpips(str(path))
    assert lpips(picture, reference) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3
    assert lpips(reference, reference) == 0
    assert score(picture, reference, lpips)["LPIPS"] == lpips(picture, reference)


@pytest.mark.slow
def test_weights_that_lpips_cannot_use(vgg, tmp_path):
    path, state = vgg
    with pytest.raises(SourceError, match=r"no such file of VGG-16 weights; get vgg16-397923af"):
        load_lpips(str(tmp_path / "absent.pth"))
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(SourceError, match=r"other.pth: sha256 [0-9a-f]{16}\.\.\. is not that of"):
        load_lpips(str(tmp_path / "other.pth"))
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"torn.safetensors: not a readable file of weights"):
        load_lpips(str(tmp_path / "torn.safetensors"))
    save_file({"features.0.weight": state["features.0.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(SourceError, match=r"part.safetensors: not the weights of VGG-16"):
        load_lpips(str(tmp_path / "part.safetensors"))
    with pytest.raises(SourceError, match="LPIPS needs pictures of at least 16 x 16"):
        load_lpips(str(path))(torch.zeros(15, 40, 3), torch.zeros(15, 40, 3))


def quaternion(axis, degrees):
    half = np.radians(degrees) / 2
    axis = np.array(axis) / np.linalg.norm(axis)
    return np.array([np.cos(half), *(np.sin(half) * axis)])


def product(p, q):
    w, v = p[0] * q[0] - p[1:] @ q[1:], p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:])
    return np.array([w, *v])


@given(
    start=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    axis=st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1)]),
    renaming=st.sampled_from(
        [((1, 0, 0), 0), ((1, 0, 0), 90), ((0, 1, 0), 180), ((1, 1, 0), 180), ((1, 1, 1), 120)]
    ),
    degrees=st.floats(0, 40),
    length=st.floats(0.1, 10),
)
def test_an_angle_is_found_under_any_name_of_the_axes(start, axis, renaming, degrees, length):
    first = np.array(start) / np.linalg.norm(start)
    second = product(product(first, quaternion(axis, degrees)), quaternion(*renaming))
    found = angles((length * first)[None].astype(np.float32), -second[None].astype(np.float32))
    assert found[0] == pytest.approx(degrees, abs=0.1)


def test_matching_finds_every_gaussian_in_another_order():
    scene = make_scene(500, seed=4)
    noise = np.random.default_rng(0).normal(0, 1e-2, scene.positions.shape)
    order = np.random.default_rng(1).permutation(500)
    moved = changed(scene, positions=(scene.positions + noise).astype(np.float32)).take(order)
    found = match(moved, scene)
    assert found.problem == ""
    assert (order[found.rows] == found.originals).all()
    rms = attribute_errors(moved, scene).rms
    assert rms["positions"] == pytest.approx(np.sqrt((noise**2).mean()), rel=1e-4)
    assert {name for name, value in rms.items() if value > 1e-4} == {"positions"}


def test_gaussians_at_one_place_are_told_apart_by_their_other_attributes():
    scene = make_scene(200, seed=5)
    places = np.repeat(scene.positions[:50], 4, axis=0)
    stacked = changed(scene, positions=places)
    noise = np.random.default_rng(2).normal(0, 1e-3, places.shape).astype(np.float32)
    found = match(changed(stacked, positions=places + noise), stacked)
    assert (found.rows == found.originals).all()


def test_scenes_that_do_not_match():
    scene = make_scene(100)
    assert match(scene.take(slice(0, 40)), scene).problem == "40 Gaussians against 100"
    assert match(scene, scene.take(slice(0, 99))).problem == "100 Gaussians against 99"
    far = changed(scene, positions=scene.positions + np.float32(50))
    assert match(far, scene).problem == "100% of its Gaussians are where the original has none"
    found = attribute_errors(far, scene)
    assert (found.rms, found.problem) == (
        {},
        "100% of its Gaussians are where the original has none",
    )
    assert overlap(far, scene) == 0
    assert overlap(scene, scene) == pytest.approx(1)


def test_missing_harmonics_count_as_zero():
    scene = make_scene(60, degree=2)
    flat = changed(scene, sh_rest=scene.sh_rest[:, :3])
    expected = np.sqrt(np.square(scene.sh_rest[:, 3:]).sum() / scene.sh_rest.size)
    assert attribute_errors(flat, scene).rms["harmonics"] == pytest.approx(expected, rel=1e-5)
    none = make_scene(60, degree=0)
    assert "harmonics" not in attribute_errors(none, none).rms


def test_a_scene_of_one_gaussian():
    scene = make_scene(1)
    assert max(attribute_errors(scene, scene).rms.values()) < 1e-5
