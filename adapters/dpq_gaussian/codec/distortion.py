"""Errors of a coded scene against its source, by attribute."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dpq_gaussian.codec.decoding import UnwrittenScene
from dpq_gaussian.codec.encoding import Encoded
from dpq_gaussian.codec.rotations import sorted_axes
from dpq_gaussian.policy import ATTRIBUTES
from dpq_gaussian.scene import Scene

_LONG = 1.23457e-05

LONGEST: Mapping[str, Mapping[str, float]] = {
    name: {"rms": _LONG} | ({"max": _LONG} if name == "positions" else {}) for name in ATTRIBUTES
}
"""Errors as long as they are when written, for files whose errors are not measured yet."""


def measure(scene: Scene, encoded: Encoded) -> dict[str, dict[str, float]]:
    """Measures the errors of the decoded scene, by attribute and measure.

    ``rms`` is the root mean square difference per number: of positions (and their largest, ``max``)
    in the scene's unit, of log scales by length, opacities, and coefficients of colour. A Gaussian
    has many rotations; theirs is the relative difference of covariances (Frobenius norm), both
    scaled to a longest axis of one.
    """
    squares = dict.fromkeys(("positions", "scales", "rotations", "opacity", "color"), 0.0)
    squares |= {"harmonics": 0.0} if encoded.parameters.coefficients else {}
    largest, first = 0.0, 0
    for decoded in UnwrittenScene(encoded):
        source = scene.take(encoded.order[first : first + len(decoded)])
        first += len(decoded)
        moved = np.abs(decoded.positions.astype(np.float64) - source.positions)
        largest = max(largest, float(moved.max()))
        logs, shape = _shape(source)
        restored, other = _shape(decoded)
        turned = np.linalg.norm(shape - other, axis=(1, 2)) / np.linalg.norm(shape, axis=(1, 2))
        opacity = [
            1 / (1 + np.exp(-s.opacity_logits.astype(np.float64))) for s in (source, decoded)
        ]
        differences = {
            "positions": moved,
            "scales": restored - logs,
            "rotations": turned,
            "opacity": opacity[0] - opacity[1],
            "color": decoded.sh_dc.astype(np.float64) - source.sh_dc,
            "harmonics": decoded.sh_rest.astype(np.float64) - source.sh_rest,
        }
        for name in squares:
            squares[name] += float(np.square(differences[name]).mean()) * len(decoded)
    result = {name: {"rms": _short(math.sqrt(v / first))} for name, v in squares.items()}
    result["positions"]["max"] = _short(largest)
    return result


def _shape(scene: Scene) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Descending log scales ``[n, 3]``, and covariances ``[n, 3, 3]`` relative to the longest."""
    logs, axes = sorted_axes(scene.log_scales, scene.rotations)
    variances = np.exp(2 * (logs - logs[:, :1]))
    return logs, np.einsum("nki,nk,nkj->nij", axes, variances, axes)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
