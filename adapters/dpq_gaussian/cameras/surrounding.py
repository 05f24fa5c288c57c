"""Cameras around and within a scene, set up from its Gaussians alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.scene import Scene

VIEWS = 24
SIZE = 256
"""Width and height of these cameras' pictures, and of others at most, in pixels."""

_SEED = 20_260
_SAMPLE = 1 << 18
_NEAR = 0.02  # of the scene's radius
_RINGS = ((12, 1.5, 3.0, 0.3), (8, 0.7, 2.0, 1.0), (4, 0.2, 1.2, 1.0))
"""Cameras, nearest and farthest distance from the middle in radii, and how far the points that
they look at spread: 0.3 of the radius, or (1) over the whole scene."""


def near_plane(scene: Scene) -> float:
    """Near plane for the cameras of ``surrounding_cameras``, in the scene's unit."""
    return _NEAR * _extent(scene)[1]


def surrounding_cameras(scene: Scene, rounds: int = 1) -> list[Camera]:
    """Sets up cameras around and within a scene, the same for equal scenes.

    Args:
        scene: any scene.
        rounds: times VIEWS cameras, the first of them those of fewer rounds.
    """
    middle, radius, sample = _extent(scene)
    generator = np.random.default_rng(_SEED)
    views = []
    for count, nearest, farthest, spread in _RINGS * rounds:
        for _ in range(count):
            direction = generator.normal(size=3)
            direction /= np.linalg.norm(direction)
            eye = middle + radius * generator.uniform(nearest, farthest) * direction
            target = middle + 0.3 * radius * generator.normal(size=3)
            if spread == 1.0:
                target = sample[generator.integers(len(sample))].astype(np.float64)
            views.append(_look(eye, target))
    return views


def _extent(
    scene: Scene,
) -> tuple[npt.NDArray[np.float64], float, npt.NDArray[np.float32]]:
    """Median and radius of the positions weighted by opacity, and 4096 weighted samples."""
    step = -(-len(scene) // _SAMPLE)
    positions = np.array(scene.positions[::step], np.float64)
    with np.errstate(over="ignore"):
        opacity = 1 / (1 + np.exp(-np.array(scene.opacity_logits[::step], np.float64)))
    share = np.cumsum(opacity + 1e-9)
    draws = (np.arange(4096) + 0.5) / 4096 * share[-1]
    sample = positions[np.minimum(np.searchsorted(share, draws), len(positions) - 1)]
    middle = np.median(sample, axis=0)
    radius = float(np.median(np.linalg.norm(sample - middle, axis=1)))
    if radius == 0:
        radius = float(np.exp(np.array(scene.log_scales[::step]).max(axis=1).mean()))
    return middle, max(radius, 1e-20), sample.astype(np.float32)


def _look(eye: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> Camera:
    """A camera at ``eye`` that looks at ``target``, 64 degrees wide."""
    forward = target - eye
    length = float(np.linalg.norm(forward))
    forward = forward / length if length > 0 else np.array([0.0, 0.0, 1.0])
    down = np.eye(3)[int(np.abs(forward).argmin())]
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return Camera(
        width=SIZE,
        height=SIZE,
        fx=0.8 * SIZE,
        fy=0.8 * SIZE,
        cx=SIZE / 2,
        cy=SIZE / 2,
        rotation=rotation,
        translation=-rotation @ eye,
    )
