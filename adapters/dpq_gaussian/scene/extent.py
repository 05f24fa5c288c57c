"""The place and size of a scene, which a few Gaussians far away do not change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpq_gaussian.scene.gaussians import Scene

SHARE = 0.98
"""Share of the Gaussians within one radius of the middle; at most the others are flyaway."""

_SAMPLE = 1 << 18
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The middle of a scene, and how far most of it reaches along an axis.

    Attributes:
        middle: median of the positions, axis by axis, float64 ``[3]``.
        radius: largest coordinate difference from the middle of all but 2 % of the Gaussians, at
            least the median standard deviation of a Gaussian, and above 0.
    """

    middle: npt.NDArray[np.float64]
    radius: float

    def beyond(self, positions: npt.NDArray[np.floating], radii: float) -> npt.NDArray[np.bool_]:
        """Mask ``[N]`` of positions ``[N, 3]`` farther than so many radii along an axis."""
        limit = radii * self.radius
        far = np.zeros(len(positions), dtype=bool)
        for axis in range(3):  # axis by axis: the float64 copy stays small
            far |= np.abs(positions[:, axis] - self.middle[axis]) > limit
        return far


def extent_of(positions: npt.NDArray[np.floating], log_scales: npt.NDArray[np.float32]) -> Extent:
    """Measures the extent of a scene from at most 262,144 of its Gaussians.

    Args:
        positions: ``[N, 3]``, of which at least one is finite.
        log_scales: ``[N, 3]``, or of a sample of the Gaussians.
    """
    step = -(-len(positions) // _SAMPLE)
    sample = np.array(positions[::step], dtype=np.float64)
    sample = sample[np.isfinite(sample).all(axis=1)]
    if not len(sample):
        sample = np.zeros((1, 3))
    middle = np.median(sample, axis=0)
    distances = np.abs(sample - middle).max(axis=1)
    place = int(SHARE * (len(distances) - 1))
    radius = float(np.partition(distances, place)[place])
    return Extent(middle=middle, radius=max(radius, typical_size(log_scales), _TINY))


def typical_size(log_scales: npt.NDArray[np.float32]) -> float:
    """Median standard deviation of Gaussians along their middle axis; 0 where none is finite."""
    step = -(-len(log_scales) // _SAMPLE)
    middle = np.sort(np.array(log_scales[::step], dtype=np.float64), axis=1)[:, 1]
    middle = middle[np.isfinite(middle)]
    return float(np.exp(min(float(np.median(middle)), 80.0))) if len(middle) else 0.0


def pulled_in(
    positions: npt.NDArray[np.floating],
    middle: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Moves positions outside of a box to its border, along the line to the middle.

    Seen from the middle, a Gaussian stays where it was when its size shrinks by the same factor.

    Args:
        positions: ``[n, 3]``.
        middle: a point inside of the box ``[3]``.
        low: lower corner of the box ``[3]``.
        high: upper corner of the box ``[3]``.

    Returns:
        The moved positions ``[n, 3]``, and the factors of the distances from the middle ``[n]``.
    """
    offsets = positions.astype(np.float64) - middle
    room = np.where(offsets > 0, high - middle, middle - low)
    with np.errstate(divide="ignore"):
        factors = np.minimum(1.0, (room / np.maximum(np.abs(offsets), 1e-300)).min(axis=1))
    return middle + offsets * factors[:, None], factors


def without_flyaways(scene: Scene, radii: float) -> tuple[Scene, int]:
    """Pulls Gaussians that are farther away than so many radii in to that distance.

    Returns:
        The scene, itself where none is so far away, and the number of Gaussians moved.
    """
    extent = extent_of(scene.positions, scene.log_scales)
    far = np.flatnonzero(extent.beyond(scene.positions, radii))
    if not len(far):
        return scene, 0
    reach = radii * extent.radius
    positions, log_scales = np.array(scene.positions), np.array(scene.log_scales)
    box = extent.middle - reach, extent.middle + reach
    moved, factors = pulled_in(positions[far], extent.middle, *box)
    positions[far] = moved
    log_scales[far] += np.log(factors).astype(np.float32)[:, None]
    return Scene(**{**scene.arrays(), "positions": positions, "log_scales": log_scales}), len(far)
