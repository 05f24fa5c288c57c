"""What every picture has in common, whatever the scene."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from render_scenes import NAMES, ahead, camera, one, scene, splats, tensors

from dpq_core.errors import SpecError
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.scene import Scene

pytestmark = pytest.mark.portable

SEEDS = st.integers(0, 10_000)


def take(attributes, index):
    return {name: tensor[index] for name, tensor in attributes.items()}


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_the_order_in_the_file_does_not_matter(seed):
    attributes = tensors(seed, 50, 1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    plain = render(splats(attributes, torch.float32), camera(seed))
    mixed = render(splats(take(attributes, order), torch.float32), camera(seed))
    assert torch.equal(plain.colour, mixed.colour)
    assert torch.equal(plain.weights[order], mixed.weights)
    assert torch.equal(plain.radii[order], mixed.radii)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.tuples(*[st.floats(0, 1)] * 3))
def test_transparent_gaussians_show_the_background(seed, background):
    attributes = tensors(seed, 30, 0)
    attributes["opacity_logits"].fill_(-20)
    options = RenderOptions(background=background)
    seen = render(splats(attributes, torch.float32), camera(seed), options)
    expected = torch.tensor(background).expand_as(seen.colour)
    assert torch.equal(seen.colour, expected)
    assert not seen.weights.any()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.booleans())
def test_weights_add_up_to_alpha(seed, antialiased):
    attributes = tensors(seed, 60, 2)
    seen = render(
        splats(attributes, torch.float32), camera(seed), RenderOptions(antialiased=antialiased)
    )
    assert seen.alpha.min() >= 0
    assert seen.alpha.max() <= 1
    assert float(seen.weights.sum()) == pytest.approx(float(seen.alpha.sum()), abs=1e-2, rel=1e-4)
    assert not seen.weights[seen.radii == 0].any()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 30), st.integers(0, 20), st.integers(1, 20), st.integers(1, 17))
def test_a_crop_is_a_part_of_the_picture(seed, left, top, width, height):
    """The tiles lie elsewhere, the pixels are the same."""
    attributes = tensors(seed, 40, 1, scales=(-4.0, -2.0))
    attributes["positions"] = 0.2 * attributes["positions"]  # inside the linear part of both
    view = ahead(50, 37, translation=np.array([0, 0, 3.0]))
    whole = render(splats(attributes, torch.float32), view)
    wide = ahead(200, 200, cx=view.cx - left, cy=view.cy - top, translation=view.translation)
    seen = render(splats(attributes, torch.float32), wide).colour[:height, :width]
    expected = whole.colour[top : top + height, left : left + width]
    rows, columns = expected.shape[:2]
    torch.testing.assert_close(seen[:rows, :columns], expected, rtol=0, atol=2e-5)


def test_scaling_a_scene_and_its_camera_changes_nothing():
    attributes = tensors(3, 60, 2)
    view = camera(3)
    plain = render(splats(attributes, torch.float32), view, RenderOptions(near=0.01))
    attributes["positions"] = attributes["positions"] * 8
    attributes["log_scales"] = attributes["log_scales"] + np.log(8)
    far = camera(3, translation=view.translation * 8)
    scaled = render(splats(attributes, torch.float32), far, RenderOptions(near=0.08))
    torch.testing.assert_close(scaled.colour, plain.colour, rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.depth, 8 * plain.depth, rtol=1e-5, atol=1e-4)


def test_the_length_of_a_quaternion_does_not_matter():
    attributes = tensors(4, 60, 0)
    plain = render(splats(attributes, torch.float32), camera(4))
    attributes["rotations"] = attributes["rotations"] * -7
    other = render(splats(attributes, torch.float32), camera(4))
    torch.testing.assert_close(other.colour, plain.colour, rtol=0, atol=1e-6)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same_bytes(threads):
    attributes = tensors(5, 20_000, 3, scales=(-5.0, -2.0))
    view = ahead(160, 130, translation=np.array([0, 0, 4.0]), fx=120.0, fy=120.0)
    results = []
    for count in (1, 2, 5):
        threads(count)
        made = splats(attributes, torch.float32, grad=True)
        seen = render(made, view)
        seen.colour.square().sum().backward()
        results.append([seen.colour, seen.weights, seen.means2d.grad])
        results[-1] += [getattr(made, name).grad for name in NAMES]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_scenes_of_views_into_a_file():
    """Scenes may be read-only and strided, as a mapped .ply gives them."""
    plain = scene(6, 50, 3)
    table = np.concatenate([a.reshape(50, -1) for a in plain.arrays().values()], 1)
    table.setflags(write=False)
    views, at = {}, 0
    for name, array in plain.arrays().items():
        width = array.reshape(50, -1).shape[1]
        views[name] = table[:, at : at + width].reshape(array.shape)
        at += width
    assert not views["positions"].flags.c_contiguous
    seen = render(Scene(**views), camera(6))
    assert torch.equal(seen.colour, render(plain, camera(6)).colour)


def test_leaving_weights_out():
    seen = render(scene(6, 50, 0), camera(6), RenderOptions(weights=False))
    assert seen.weights.shape == (0,)


def test_without_gradients_there_is_no_probe():
    made = splats(one(), torch.float32, grad=True)
    assert render(made, ahead()).means2d is not None
    with torch.no_grad():
        assert render(made, ahead()).means2d is None


def test_no_gaussians_at_all():
    empty = {name: tensor[:0] for name, tensor in one().items()}
    seen = render(splats(empty, torch.float32), ahead(), RenderOptions(background=(1, 0.5, 0)))
    assert seen.colour[3, 4].tolist() == [1, 0.5, 0]
    assert seen.weights.shape == (0,)


@pytest.mark.parametrize("value", [1e30, -1e30])
@pytest.mark.parametrize("name", ["positions", "log_scales", "opacity_logits"])
def test_absurd_values_do_not_spoil_the_picture(name, value):
    attributes = tensors(8, 30, 0)
    attributes[name][0] = value
    seen = render(splats(attributes, torch.float32), camera(8))
    assert torch.isfinite(seen.colour).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"near": 0.0}, "near must be above 0"),
        ({"sh_degree": 4}, "sh_degree must be 0 to 3"),
        ({"background": (0.0, float("nan"), 0.0)}, "background must be finite"),
    ],
)
def test_options_that_cannot_be(fields, message):
    with pytest.raises(SpecError, match=message):
        RenderOptions(**fields)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
def test_gsplat_draws_the_same(antialiased):
    pytest.importorskip("gsplat")
    attributes = tensors(9, 500, 3, scales=(-4.0, -2.0))
    view = ahead(128, 96, translation=np.array([0, 0, 4.0]), fx=90.0, fy=90.0)
    options = RenderOptions(background=(0.2, 0.5, 0.9), antialiased=antialiased)
    ours = splats(attributes, torch.float32, grad=True)
    theirs = Splats(*(tensor.detach().cuda().requires_grad_() for tensor in ours.tensors()))
    made = [render(ours, view, options), render(theirs, view, options)]
    for seen in made:
        (seen.colour.square().sum() + seen.depth.sum()).backward()
    for name in ("colour", "alpha", "depth", "weights"):
        mine, other = (getattr(seen, name).detach().cpu() for seen in made)
        assert (mine - other).norm() <= 1e-3 * mine.norm(), name
    pairs = [(getattr(ours, n).grad, getattr(theirs, n).grad.cpu()) for n in NAMES]
    pairs.append((made[0].means2d.grad, made[1].means2d.grad.cpu()))
    for mine, other in pairs:
        assert (mine - other).norm() <= 1e-2 * mine.norm()
