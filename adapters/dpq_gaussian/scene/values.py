"""Checks and repair of the values of a scene, and which Gaussians are drawn at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.errors import Hint, SourceError
from dpq_gaussian.scene.gaussians import Scene

ROWS = 1 << 16
"""Gaussians that are looked at together, so that checking a mapped file takes little memory."""

SHORTEST = 1e-15
"""A quaternion whose largest component is smaller has a square that float32 rounds to zero."""

MOST_OPAQUE = np.float32(np.log((1 - 1e-6) / 1e-6))
"""Logit of opacity 1 - 1e-6: converters write full opacity as an infinite logit."""

_INVISIBLE = 1 / 255
"""No renderer draws a Gaussian of lower opacity (Kerbl et al.; gsplat)."""


def check_values(scene: Scene, where: str) -> None:
    """Refuse values that no codec or renderer can give a meaning; reads the scene in chunks.

    Args:
        scene: any scene, possibly views into a mapped file.
        where: what to call it in the message, e.g. the path of its file.

    Raises:
        SourceError: there is no Gaussian, an attribute is NaN or infinite, or a quaternion has no
            length; the message counts the Gaussians per attribute and names the first.
    """
    if not len(scene):
        raise SourceError(f"{where}: holds no Gaussians")
    faults_by_name: dict[str, list[int]] = {}
    for start in range(0, len(scene), ROWS):
        for name, bad in bad_values(scene.take(slice(start, start + ROWS))).items():
            if bad.any():
                count_and_first = faults_by_name.setdefault(name, [0, start + int(bad.argmax())])
                count_and_first[0] += int(bad.sum())
    if faults_by_name:
        faults = "; ".join(f"{name} in {k} (first: {i})" for name, (k, i) in faults_by_name.items())
        raise SourceError(
            f"{where}: unusable values among {len(scene)} Gaussians: {faults}",
            Hint.of("export the scene with {}, which drops them", repair=True),
        )


def bad_values(scene: Scene) -> dict[str, npt.NDArray[np.bool_]]:
    """Finds unusable values: a mask ``[N]`` of Gaussians by kind of fault."""
    faults: dict[str, npt.NDArray[np.bool_]] = {
        f"{name} is NaN or infinite": np.asarray(
            ~np.isfinite(array).reshape(len(scene), -1).all(axis=1)
        )
        for name, array in scene.arrays().items()
    }
    # NaN compares false: a quaternion is counted under one fault only.
    lengths = np.abs(scene.rotations).max(axis=1)
    faults["rotations has length zero"] = np.asarray(lengths < SHORTEST)
    return faults


def repaired(scene: Scene, where: str) -> tuple[Scene, tuple[str, ...]]:
    """Repairs a scene so that ``check_values`` accepts it, with a line for each kind of change.

    Infinite opacity logits become +-13.8 (opacity 1 - 1e-6 or 1e-6); a Gaussian with any other
    unusable value is dropped.

    Raises:
        SourceError: no Gaussian is left.
    """
    endless = np.isinf(scene.opacity_logits)
    notes = []
    if endless.any():
        bounded = np.clip(scene.opacity_logits, -MOST_OPAQUE, MOST_OPAQUE)
        logits = np.where(endless, bounded, scene.opacity_logits)
        scene = Scene(**{**scene.arrays(), "opacity_logits": logits})
        notes.append(f"bounded {int(endless.sum()):,} infinite opacities")
    bad = np.zeros(len(scene), dtype=bool)
    for start in range(0, len(scene), ROWS):
        part = slice(start, start + ROWS)
        for mask in bad_values(scene.take(part)).values():
            bad[part] |= mask
    if bad.all():
        raise SourceError(f"{where}: none of its {len(scene):,} Gaussians is usable")
    if bad.any():
        notes.append(f"dropped {int(bad.sum()):,} of {len(scene):,} Gaussians: unusable values")
        scene = scene.take(~bad)
    return scene, tuple(notes)


def visible(scene: Scene) -> Any:
    """Indices of the Gaussians that a renderer draws; None when that is all of them, or none."""
    limit = float(np.log(_INVISIBLE / (1 - _INVISIBLE)))
    drawn = np.flatnonzero(np.asarray(scene.opacity_logits) >= limit)
    return None if len(drawn) in (0, len(scene)) else drawn
