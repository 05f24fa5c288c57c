"""Viewpoints of scenes without photographs: the rig to measure from, and the orbit to show.

A scene looks good only from where it was photographed; from behind its walls it is a blur. So
viewpoints are tried, and those are kept that show many different Gaussians: from behind a wall a
few large ones hide the rest. Twelve of 36 directions are taken, each the one that adds most to what
the others show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpq_core.errors import ANY, Hint, SourceError, SpecError
from dpq_gaussian.cameras.camera import Camera, Vectors
from dpq_gaussian.rendering import RenderOptions, Splats, render
from dpq_gaussian.scene import Scene

VIEWS = 12
SIZE = 512  # pixels
ELEVATIONS = (10.0, 30.0, 50.0)  # degrees
AZIMUTHS = tuple(30.0 * step for step in range(12))
DISTANCES = (1.0, 1.2, 1.4)  # see SceneBounds.camera
CLEAR = 0.7  # of the best score: less is an obstructed view
OPEN = 0.35  # of the best score: an orbit of which all is better needs no detour

_TRIAL = 128  # pixels
_SEEN = 0.1  # pixels of such a picture: a Gaussian that contributes as much counts in full
_LEAST = 1.0  # score without which nothing is seen
_OPTIONS = RenderOptions(sh_degree=0)

Shown = npt.NDArray[np.float32]

FIELD_OF_VIEW = 50.0  # degrees, across the shorter side of the picture
CORE = 0.7  # share of the opacity that the radius holds
SAMPLE = 100_000  # Gaussians that are looked at
_STEEPEST = 85.0

UPS = {
    "-y": (0.0, -1.0, 0.0),
    "+y": (0.0, 1.0, 0.0),
    "-z": (0.0, 0.0, -1.0),
    "+z": (0.0, 0.0, 1.0),
    "-x": (-1.0, 0.0, 0.0),
    "+x": (1.0, 0.0, 0.0),
}
"""Which way is up; ``-y`` in scenes trained from COLMAP's poses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneBounds:
    """Centre, radius and upward direction of a scene.

    Attributes:
        centre: float64 ``[3]``, median of the positions per axis, weighted by opacity.
        radius: distance from the centre within which a share of CORE of the opacity lies.
        up: unit vector.
    """

    centre: Vectors
    radius: float
    up: Vectors

    def camera(
        self,
        *,
        azimuth: float,
        elevation: float,
        distance: float,
        width: int,
        height: int,
        name: str = "",
    ) -> Camera:
        """A camera that looks at the centre.

        Args:
            azimuth: degrees around the vertical axis.
            elevation: degrees above the horizon.
            distance: from the centre, in units of the one at which a ball of ``radius`` just fits
                the tangents of the field of view.
            width: width of the picture, in pixels.
            height: height of the picture, in pixels.
            name: name of the view.
        """
        if not abs(elevation) <= _STEEPEST:
            raise SpecError(f"an elevation of {elevation} degrees; -{_STEEPEST} to {_STEEPEST}")
        turn, tilt = np.radians(azimuth), np.radians(elevation)
        half = np.tan(np.radians(FIELD_OF_VIEW) / 2)
        ahead, aside = _horizon(self.up)
        outward = np.cos(tilt) * (np.sin(turn) * aside - np.cos(turn) * ahead)
        outward = outward + np.sin(tilt) * self.up
        eye = self.centre + distance * self.radius / half * outward
        right = np.cross(-outward, self.up)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(-outward, right), -outward])
        focal = min(width, height) / 2 / half
        return Camera(
            width=width,
            height=height,
            fx=focal,
            fy=focal,
            cx=width / 2,
            cy=height / 2,
            rotation=rotation,
            translation=-rotation @ eye,
            name=name,
        )


def thinned(scene: Scene) -> Scene:
    """At most SAMPLE Gaussians of a scene, evenly spread over its order."""
    step = -(-len(scene) // SAMPLE)
    return scene.take(slice(None, None, step))


def find_bounds(scene: Scene, up: str = "-y") -> SceneBounds:
    """Finds the centre and the radius of the opacity of a scene.

    Raises:
        SpecError: ``up`` is not one of UPS.
    """
    if up not in UPS:
        raise SpecError(f"unknown direction {up!r} for up; known: {', '.join(UPS)}")
    scene = thinned(scene)
    weights = 1 / (1 + np.exp(-scene.opacity_logits.astype(np.float64)))
    positions = scene.positions.astype(np.float64)
    centre = np.array([_quantile(positions[:, axis], weights, 0.5) for axis in range(3)])
    spread = _quantile(np.linalg.norm(positions - centre, axis=1), weights, CORE)
    widest = np.exp(scene.log_scales.max(1).astype(np.float64).clip(-30, 30))
    radius = max(spread, _quantile(widest, weights, 0.5))  # a single Gaussian has no spread
    return SceneBounds(centre=centre, radius=radius, up=np.array(UPS[up]))


def _horizon(up: Vectors) -> tuple[Vectors, Vectors]:
    """Two horizontal unit vectors, ahead and to the right; z and x where y is vertical."""
    ahead = np.array([0.0, 0.0, 1.0]) if abs(up[2]) < 0.5 else np.array([0.0, 1.0, 0.0])
    aside: Vectors = np.cross(ahead, up)
    return ahead, aside


def _quantile(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], share: float
) -> float:
    """The smallest value up to which a share of the weights lies."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    at = min(int(np.searchsorted(total, share * total[-1])), len(values) - 1)
    return float(values[order[at]])


@dataclass(frozen=True, kw_only=True)
class _Trials:
    """A scene and its bounds, on which viewpoints are tried."""

    bounds: SceneBounds
    splats: Splats

    @classmethod
    def of(cls, scene: Scene, up: str) -> _Trials:
        return cls(bounds=find_bounds(scene, up), splats=Splats.of(thinned(scene)))

    def shown(self, azimuth: float, elevation: float, distance: float) -> Shown:
        """How well each Gaussian is seen from a viewpoint, 0 to 1, float32 ``[n]``."""
        camera = self.bounds.camera(
            azimuth=azimuth, elevation=elevation, distance=distance, width=_TRIAL, height=_TRIAL
        )
        weights = render(self.splats, camera, _OPTIONS).weights.numpy()
        return np.minimum(weights / _SEEN, 1)

    def distance(self) -> float:
        """The distance from which most Gaussians are seen; the nearest of equals."""
        directions = [(a, e) for e in ELEVATIONS[1:2] for a in AZIMUTHS]
        scores = [
            sum(
                float(self.shown(azimuth, elevation, distance).sum())
                for azimuth, elevation in directions
            )
            for distance in DISTANCES
        ]
        if max(scores) < _LEAST:
            raise SourceError(
                "no camera around the scene sees any of it: its Gaussians are too faint or too "
                "scattered",
                Hint.of("give {}", cameras=ANY),
            )
        return DISTANCES[int(np.argmax(scores))]


def rig(
    scene: Scene, *, size: int = SIZE, views: int = VIEWS, up: str = "-y"
) -> tuple[Camera, ...]:
    """Chooses cameras around a scene that show many different Gaussians, to measure it from.

    Args:
        scene: the original; its compressed copies are measured with the same cameras.
        size: width and height of the pictures in pixels.
        views: at most as many cameras.
        up: see bounds.UPS.

    Returns:
        At least one camera, in the order in which they add to what is seen.

    Raises:
        SourceError: nothing of the scene can be seen.
    """
    trials = _Trials.of(scene, up)
    distance = trials.distance()
    directions = [(azimuth, elevation) for elevation in ELEVATIONS for azimuth in AZIMUTHS]
    shown = [trials.shown(azimuth, elevation, distance) for azimuth, elevation in directions]
    scores = np.array([float(view.sum()) for view in shown])
    clear = [at for at in range(len(shown)) if scores[at] >= CLEAR * scores.max()]
    covered = np.zeros_like(shown[0])
    chosen: list[int] = []
    for _ in range(min(views, len(clear))):
        gains = {
            at: float(np.maximum(shown[at] - covered, 0).sum()) for at in clear if at not in chosen
        }
        chosen.append(max(gains, key=lambda at: (gains[at], -at)))
        covered = np.maximum(covered, shown[chosen[-1]])
    return tuple(
        trials.bounds.camera(
            azimuth=directions[at][0],
            elevation=directions[at][1],
            distance=distance,
            width=size,
            height=size,
            name=f"rig-{directions[at][0]:03.0f}-{directions[at][1]:02.0f}",
        )
        for at in chosen
    )


def orbit(
    scene: Scene,
    *,
    frames: int,
    width: int,
    height: int,
    elevation: float | None = None,
    up: str = "-y",
) -> tuple[Camera, ...]:
    """Places cameras on a circle around a scene, for an endless film.

    Where walls stand in the way, they swing to and fro in front of them instead.

    Args:
        scene: what to look at.
        frames: number of cameras.
        width: width of the pictures, in pixels.
        height: height of the pictures, in pixels.
        elevation: degrees above the horizon; None: that of ELEVATIONS with the best view.
        up: see bounds.UPS.

    Raises:
        SourceError: nothing of the scene can be seen.
    """
    trials = _Trials.of(scene, up)
    distance = trials.distance()
    heights = ELEVATIONS if elevation is None else (elevation,)
    table = np.array(
        [[float(trials.shown(a, tilt, distance).sum()) for a in AZIMUTHS] for tilt in heights]
    )
    row = int(table.sum(1).argmax())
    path = _path(table[row])
    return tuple(
        trials.bounds.camera(
            azimuth=path(frame / frames),
            elevation=heights[row],
            distance=distance,
            width=width,
            height=height,
            name=f"orbit-{frame:03d}",
        )
        for frame in range(frames)
    )


def _path(scores: npt.NDArray[np.float64]) -> Callable[[float], float]:
    """Azimuth in degrees as a function of time, 0 to 1, from the scores at AZIMUTHS."""
    count, best = len(scores), int(scores.argmax())
    if scores.min() >= OPEN * scores[best]:
        return lambda time: 360 * time + AZIMUTHS[best]
    clear = scores >= CLEAR * scores[best]
    left = next(step for step in range(1, count + 1) if not clear[(best - step) % count]) - 1
    right = next(step for step in range(1, count + 1) if not clear[(best + step) % count]) - 1
    step = 360 / count
    middle = AZIMUTHS[best] + (right - left) / 2 * step
    half = max((left + right) / 2, 0.5) * step
    return lambda time: middle + half * float(np.sin(2 * np.pi * time))
