"""The compiled rasteriser against the plain per-pixel reference in float64: pictures, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from render_scenes import NAMES, ahead, camera, one, splats, tensors

from dpq_gaussian.rendering import RenderOptions, render
from dpq_gaussian.rendering.reference import render_reference

pytestmark = pytest.mark.portable

PICTURE, GRADIENT = 2e-6, 2e-5  # measured: 8e-7 and 3e-6
BACKGROUND = (0.2, 0.5, 0.9)


def compare(attributes, view, options, *, picture=PICTURE, gradient=GRADIENT):
    """Render both ways, pull random gradients back, and compare everything."""
    fast, slow = (splats(attributes, t, grad=True) for t in (torch.float32, torch.float64))
    ours, oracle = render(fast, view, options), render_reference(slow, view, options)
    oracle.means2d.retain_grad()
    generator = torch.Generator().manual_seed(0)
    pulls = {
        name: torch.randn(getattr(oracle, name).shape, generator=generator)
        for name in ("colour", "alpha", "depth")
    }
    for one_of in (ours, oracle):
        sum((getattr(one_of, n) * pull).sum() for n, pull in pulls.items()).backward()
    largest = oracle.depth.abs().max().clamp_min(1)
    for name, scale in (("colour", 1), ("alpha", 1), ("depth", largest)):
        worst = (getattr(ours, name) - getattr(oracle, name)).abs().max() / scale
        assert worst <= picture, name
    drawn = ours.radii > 0
    torch.testing.assert_close(ours.weights.double(), oracle.weights, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        ours.radii[drawn].double(), oracle.radii[drawn], rtol=1e-5, atol=1e-5
    )
    grads = {name: (getattr(fast, name).grad, getattr(slow, name).grad) for name in NAMES}
    grads["means2d"] = ours.means2d.grad, oracle.means2d.grad
    for name, (mine, truth) in grads.items():
        truth = torch.zeros_like(mine) if truth is None else truth  # harmonics that are not used
        assert (mine - truth).norm() <= gradient * truth.norm() + 1e-7, name
    return ours


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("seed", range(12))
def test_random_scenes(seed, antialiased):
    options = RenderOptions(background=BACKGROUND, antialiased=antialiased)
    compare(tensors(seed, 60, seed % 4), camera(seed), options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "scales", [(-9.0, 1.0), (-12.0, -8.0), (0.0, 2.0)], ids=["needles", "points", "giants"]
)
def test_extreme_scales(scales, seed):
    attributes = tensors(seed, 40, 1, scales=scales)
    compare(attributes, camera(100 + seed), RenderOptions(), gradient=1e-4, picture=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_opaque_scenes_stop_and_clamp(seed):
    """Alpha reaches its bound, pixels close: gradients of what is hidden are zero."""
    attributes = tensors(seed, 150, 0, scales=(-2.0, 0.0))
    attributes["opacity_logits"] = attributes["opacity_logits"].abs() * 4 + 2
    view = ahead(translation=np.array([0, 0, 5.0]), fx=20.0, fy=20.0)
    ours = compare(attributes, view, RenderOptions(background=BACKGROUND))
    assert (ours.alpha > 0.999).any()
    assert ((ours.weights == 0) & (ours.radii > 0)).any()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_up_to_a_degree(degree):
    compare(tensors(7, 40, 3), camera(7), RenderOptions(sh_degree=degree))


@pytest.mark.parametrize("z", [-3.0, -1e-3, 0.0, 0.01])
def test_nothing_at_or_behind_the_near_plane(z):
    attributes = splats(one(positions=[0.0, 0.0, z]), torch.float32, grad=True)
    seen = render(attributes, ahead(), RenderOptions(near=0.01))
    assert seen.alpha.max() == 0
    assert seen.radii.tolist() == [0]
    seen.colour.sum().backward()
    assert all(not tensor.grad.any() for tensor in attributes.tensors())


@pytest.mark.parametrize("x", [0.011, 0.05, 0.3, 3.0], ids=str)
def test_just_beyond_the_near_plane(x):
    """Close ones are huge, and linearised at the border of the picture."""
    attributes = one(positions=[x, -x, 0.0101], log_scales=[-5.0, -6.0, -4.0])
    compare(attributes, ahead(), RenderOptions(near=0.01), gradient=1e-4, picture=1e-5)


def test_off_the_picture():
    both = {name: torch.cat([one(positions=[50.0, 0.0, 2.0])[name], one()[name]]) for name in NAMES}
    seen = render(splats(both, torch.float32), ahead())
    assert (seen.radii > 0).tolist() == [False, True]
    assert seen.weights[0] == 0
    assert seen.weights[1] == pytest.approx(float(seen.alpha.sum()), rel=1e-5)


def test_a_single_gaussian_by_hand():
    """alpha = opacity exp(-r^2 / 2 var) with var = (f s / z)^2 + 0.3 on the axis."""
    seen = render(splats(one(), torch.float32), ahead(49, 33, cx=24.5, cy=16.5))
    variance = (40 / 2 * np.exp(-2)) ** 2 + 0.3
    rows, columns = np.mgrid[:33, :49]
    square = (columns - 24) ** 2 + (rows - 16) ** 2
    alpha = 0.5 * np.exp(-square / (2 * variance))
    alpha[alpha < 1 / 255] = 0
    np.testing.assert_allclose(seen.alpha.numpy(), alpha, atol=1e-6)
    np.testing.assert_allclose(seen.colour[..., 1].numpy(), 0.5 * alpha, atol=1e-6)
    np.testing.assert_allclose(seen.depth.numpy(), 2 * alpha, atol=3e-6)


def test_the_filter_keeps_the_light_of_small_gaussians():
    """Mip-Splatting: without it a dot far smaller than a pixel shines like a whole one."""
    tiny = splats(one(log_scales=[-4.5] * 3, opacity_logits=4.0), torch.float32)
    classic = render(tiny, ahead()).alpha.sum()
    smooth = render(tiny, ahead(), RenderOptions(antialiased=True)).alpha.sum()
    area = 2 * np.pi * (40 / 2 * np.exp(-4.5)) ** 2 / (1 + np.exp(-4.0))
    assert smooth == pytest.approx(area, rel=0.15)
    assert classic > 4 * smooth
