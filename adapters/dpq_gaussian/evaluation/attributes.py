"""Errors of the attributes of a file's Gaussians against the original's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpq_gaussian.evaluation.matching import SAMPLE, match
from dpq_gaussian.scene import Scene

UNITS = {
    "positions": "per coordinate, in the scene's unit",
    "scales": "per logarithm of a standard deviation, axes by length",
    "rotations": "angle in degrees; naming the axes otherwise is no error",
    "opacity": "of the opacity in [0, 1]",
    "color": "per coefficient of the constant harmonic",
    "harmonics": "per coefficient of the other harmonics; what the file lacks counts as zero",
}
"""Attribute -> of what its error is the root mean square."""


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The errors of attributes, or why they cannot be measured.

    Attributes:
        rms: attribute -> root mean square error; empty where the scenes cannot be compared.
        pairs: what was compared, for protocols.
        problem: why they cannot be compared; empty if they can.
    """

    rms: Mapping[str, float]
    pairs: str
    problem: str


def attribute_errors(scene: Scene, original: Scene) -> Errors:
    """Compares the attributes of matched Gaussians; each counts alike, visible or not."""
    pairing = match(scene, original)
    if pairing.problem:
        return Errors(rms={}, pairs="", problem=pairing.problem)
    file, source = scene.take(pairing.rows), original.take(pairing.originals)
    pairs = f"at most {SAMPLE:,} of its Gaussians, each with the one that it was made from"
    differences = {
        "positions": file.positions.astype(np.float64) - source.positions,
        "scales": np.sort(file.log_scales, 1).astype(np.float64) - np.sort(source.log_scales, 1),
        "rotations": angles(file.rotations, source.rotations),
        "opacity": _opacity(file) - _opacity(source),
        "color": file.sh_dc.astype(np.float64) - source.sh_dc,
    }
    if original.sh_degree:
        differences["harmonics"] = _harmonics(file, source) - source.sh_rest
    rms = {name: float(np.sqrt(np.square(d).mean())) for name, d in differences.items()}
    return Errors(rms=rms, pairs=pairs, problem="")


def angles(
    rotations: npt.NDArray[np.float32], others: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Degrees ``[n]`` between orientations of Gaussians, given as quaternions ``[n, 4]``.

    An ellipsoid stays the same when its axes are renamed: of the 24 rotations that do so, the one
    is taken that leaves the smallest angle. Their quaternions have one component of 1, two of
    1 / sqrt 2, or four of 1 / 2.
    """
    p, q = (
        r.astype(np.float64) / np.linalg.norm(r.astype(np.float64), axis=1, keepdims=True)
        for r in (rotations, others)
    )
    w = (p * q).sum(axis=1, keepdims=True)
    vector = p[:, :1] * q[:, 1:] - q[:, :1] * p[:, 1:] - np.cross(p[:, 1:], q[:, 1:])
    turn = np.sort(np.abs(np.concatenate([w, vector], axis=1)), axis=1)  # ascending [n, 4]
    cosine = np.maximum(turn[:, 3], turn[:, 2:].sum(axis=1) / np.sqrt(2))
    cosine = np.maximum(cosine, turn.sum(axis=1) / 2)
    return np.asarray(2 * np.degrees(np.arccos(np.minimum(cosine, 1))))


def _opacity(scene: Scene) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(scene.opacity_logits.astype(np.float64), -50, 50))))


def _harmonics(scene: Scene, like: Scene) -> npt.NDArray[np.float64]:
    """The harmonics of a scene, cut or zero-padded to the degree of another scene."""
    m = min(scene.sh_rest.shape[1], like.sh_rest.shape[1])
    padded = np.zeros(like.sh_rest.shape)
    padded[:, :m] = scene.sh_rest[:, :m]
    return padded
