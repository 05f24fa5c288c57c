"""What a scene is about, and cameras that stand around it and look at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SpecError
from dpq_gaussian.cameras.camera import Camera, Vectors
from dpq_gaussian.scene import Scene

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
class Stage:
    """Where a scene is.

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
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            name: of the view.
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


def find_stage(scene: Scene, up: str = "-y") -> Stage:
    """Look where the opacity of a scene is.

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
    return Stage(centre=centre, radius=radius, up=np.array(UPS[up]))


def _horizon(up: Vectors) -> tuple[Vectors, Vectors]:
    """Ahead and to the right for somebody upright; z and x where y is the vertical axis."""
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
