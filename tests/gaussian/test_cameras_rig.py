"""The rig: cameras that see much of a scene, from where nothing stands in the way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from render_scenes import scene

from dpq_core.errors import SourceError, SpecError
from dpq_gaussian.rendering import render
from dpq_gaussian.rendering.viewpoints import UPS, VIEWS, find_bounds, orbit, rig
from dpq_gaussian.scene import Scene


def ball(count=3000, radius=1.0, centre=(0.0, 0.0, 0.0), seed=0):
    """Small Gaussians on a sphere."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    made = scene(seed, count, 0, scales=(-4.5, -4.0))
    positions = (radius * directions + np.array(centre)).astype(np.float32)
    return dataclasses.replace(
        made,
        positions=positions,
        log_scales=(made.log_scales + np.log(radius)).astype(np.float32),
        opacity_logits=np.full(count, 4, np.float32),
    )


def joined(*scenes):
    arrays = [one.arrays() for one in scenes]
    return Scene(**{name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]})


def wall(z):
    """One large opaque Gaussian, flat in z."""
    made = scene(1, 1, 0)
    return dataclasses.replace(
        made,
        positions=np.array([[0, 0, z]], np.float32),
        log_scales=np.array([[2.0, 2.0, -5.0]], np.float32),
        rotations=np.array([[1, 0, 0, 0]], np.float32),
        opacity_logits=np.array([9], np.float32),
    )


def test_the_rig_stands_around_the_scene_and_looks_at_it():
    centre = np.array([5.0, -2.0, 1.0])
    views = rig(ball(centre=centre), size=64)
    assert len(views) == VIEWS
    assert len({view.name for view in views}) == VIEWS
    for view in views:
        seen = view.rotation @ centre + view.translation
        assert abs(seen[:2]).max() < 0.1 * seen[2]
        assert view.centre[1] < centre[1]  # above: y points down
        # Upright: up in the world is up in the picture.
        assert (view.rotation @ np.array([0, -1.0, 0]))[1] < 0
        covered = (render(ball(centre=centre), view).alpha > 0.2).float().mean()
        assert covered > 0.3


def test_the_same_scene_has_the_same_rig():
    first, second = rig(ball(), size=32), rig(ball(), size=32)
    assert [view.name for view in first] == [view.name for view in second]
    for mine, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine.translation, other.translation)


def test_the_rig_grows_with_the_scene():
    small, large = rig(ball(), size=32)[0], rig(ball(radius=8.0), size=32)[0]
    assert np.linalg.norm(large.centre) == pytest.approx(8 * np.linalg.norm(small.centre), rel=0.1)


def test_floaters_far_away_do_not_matter():
    """A few Gaussians at a thousand radii are no reason to step back."""
    scattered = joined(ball(), ball(30, radius=1000.0, seed=2))
    distance = np.linalg.norm(rig(scattered, size=32)[0].centre)
    assert distance == pytest.approx(np.linalg.norm(rig(ball(), size=32)[0].centre), rel=0.3)


def test_views_from_behind_a_wall_are_left_out():
    """In front of the camera that looks along z stands a wall."""
    views = rig(joined(ball(), wall(-1.2)), size=32)
    assert views
    assert all(view.centre[2] > -2 for view in views)  # past its faint rim at the most


def test_an_orbit_goes_round():
    frames = orbit(ball(), frames=8, width=40, height=30, elevation=20.0)
    assert [(view.width, view.height) for view in frames] == [(40, 30)] * 8
    angles = np.unwrap([np.arctan2(view.centre[0], view.centre[2]) for view in frames])
    np.testing.assert_allclose(np.abs(np.diff(angles)), np.pi / 4, atol=0.02)
    heights = [-view.centre[1] / np.linalg.norm(view.centre) for view in frames]
    np.testing.assert_allclose(heights, np.sin(np.radians(20)), atol=0.05)


def test_an_orbit_swings_in_front_of_walls():
    frames = orbit(joined(ball(), wall(-1.2)), frames=12, width=32, height=32)
    assert all(view.centre[2] > -2 for view in frames)
    steps = np.diff([np.arctan2(view.centre[0], view.centre[2]) for view in frames])
    assert (steps > 0).any()
    assert (steps < 0).any()


@pytest.mark.parametrize("up", UPS)
def test_any_axis_can_point_up(up):
    stage = find_bounds(ball(), up)
    for elevation in (-40, 10, 80):
        view = stage.camera(azimuth=33, elevation=elevation, distance=1, width=9, height=9)
        raised = float(view.centre @ np.array(UPS[up]))
        assert raised / np.linalg.norm(view.centre) == pytest.approx(
            np.sin(np.radians(elevation)), abs=0.05
        )
        assert (view.rotation @ np.array(UPS[up]))[1] < 0


def test_a_single_gaussian_has_a_rig():
    views = rig(ball(1), size=32)
    assert (render(ball(1), views[0]).alpha > 0.5).any()


def test_what_cannot_be_seen_is_one_line():
    faint = dataclasses.replace(ball(), opacity_logits=np.full(3000, -20, np.float32))
    for look in (lambda: rig(faint), lambda: orbit(faint, frames=2, width=8, height=8)):
        with pytest.raises(SourceError, match="no camera around the scene sees any of it"):
            look()


def test_directions_and_elevations_that_cannot_be():
    with pytest.raises(SpecError, match="unknown direction 'north' for up; known: -y"):
        rig(ball(10), up="north")
    with pytest.raises(SpecError, match="an elevation of 90"):
        orbit(ball(10), frames=1, width=8, height=8, elevation=90.0)
