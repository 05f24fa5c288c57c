"""How much of each Gaussian is seen: blending weights from a rig of cameras around the scene.

An error in a Gaussian's colour shows in proportion to the weight with which it is blended, summed
over pixels. No photographs and no poses are needed: cameras are set up from the scene alone, half
of them outside looking at it, the others nearer and within. Poses of real cameras, where there are
any, tell better what is looked at (on a photographed scene: +1.5 dB at equal bytes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from dpq_gaussian.cameras import Camera
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.scene import Scene

VIEWS = 24
SIZE = 256
"""Width and height of the rig's pictures, and of others at most, in pixels."""

MOST_CAMERAS = 48
"""Of the cameras that a user gives, so many are used, evenly spread."""

_SEED = 20_260
_SAMPLE = 1 << 18
_NEAR = 0.02  # of the scene's radius
_RINGS = ((12, 1.5, 3.0, 0.3), (8, 0.7, 2.0, 1.0), (4, 0.2, 1.2, 1.0))
"""Cameras, nearest and farthest distance from the middle in radii, and how far the points that
they look at spread: 0.3 of the radius, or (1) over the whole scene."""


def importance(
    scene: Scene,
    cameras: Sequence[Camera] = (),
    options: RenderOptions | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> npt.NDArray[np.float32]:
    """Amplitude with which each Gaussian is seen, float32 ``[N]``.

    Its square is one on average (zero where the cameras see nothing at all).

    Args:
        scene: that has passed ``check_values``.
        cameras: real ones; without any, a rig is set up from the scene.
        options: how the scene is drawn.
        tick: told what share of the views is done.
    """
    near = 0.2 if cameras else near_plane(scene)
    views = _some(cameras) if cameras else rig(scene)
    splats = Splats(
        positions=torch.from_numpy(np.array(scene.positions)),
        log_scales=torch.from_numpy(np.array(scene.log_scales)),
        rotations=torch.from_numpy(np.array(scene.rotations)),
        opacity_logits=torch.from_numpy(np.array(scene.opacity_logits)),
        sh_dc=torch.zeros(len(scene), 3),
        sh_rest=torch.zeros(len(scene), 0, 3),
    )
    total = np.zeros(len(scene))
    options = dataclasses.replace(options or RenderOptions(), near=near, sh_degree=0)
    for done, camera in enumerate(views):
        tick(done / len(views))
        with torch.no_grad():
            weights = render(splats, camera, options).weights.numpy()
        total += weights / (camera.width * camera.height)
    # Relative to all that is seen, so that it matters not how much of the pictures is empty.
    return np.sqrt(total * (len(scene) / max(float(total.sum()), 1e-300))).astype(np.float32)


def near_plane(scene: Scene) -> float:
    """Nothing that is nearer is drawn for the cameras of ``rig``."""
    return _NEAR * _extent(scene)[1]


def rig(scene: Scene, rounds: int = 1) -> list[Camera]:
    """Cameras around and within a scene; the same for equal scenes.

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
    """Middle and radius of what is opaque, and positions drawn by opacity."""
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


def _some(cameras: Sequence[Camera]) -> list[Camera]:
    """At most MOST_CAMERAS of the cameras, evenly spread, in small pictures."""
    count = min(MOST_CAMERAS, len(cameras))
    picked = [cameras[i * len(cameras) // count] for i in range(count)]
    return [c.scaled(min(1.0, SIZE / max(c.width, c.height))) for c in picked]
