"""Checks and repair of the values of a scene, and which Gaussians are drawn at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.errors import Hint, SourceError
from dpq_gaussian.scene.gaussians import FloatArray, Scene

ROWS = 1 << 16
"""Gaussians that are looked at together, so that checking a mapped file takes little memory."""

SHORTEST = 1e-15
"""A quaternion whose largest component is smaller has a square that float32 rounds to zero."""

MOST_OPAQUE = np.float32(np.log((1 - 1e-6) / 1e-6))
"""Logit of opacity 1 - 1e-6: converters write full opacity as an infinite logit."""

FLATNESS = np.float32(np.log(1e-4))
"""Log of the thickness of a flat Gaussian, relative to the shorter of its other axes."""

_POINT = np.float32(-20.0)
"""Log scale of a Gaussian without any size."""

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


def bounded(scene: Scene) -> tuple[Scene, tuple[str, ...]]:
    """Gives infinite values that mean something a finite one, with a line for each kind.

    Infinite opacity logits become +-13.8 (opacity 1 - 1e-6 or 1e-6), log scales of -inf, which
    flat Gaussians have, those of an axis 10,000 times thinner than the others.
    """
    notes = []
    endless = np.isinf(scene.opacity_logits)
    if endless.any():
        limited = np.clip(scene.opacity_logits, -MOST_OPAQUE, MOST_OPAQUE)
        logits = np.where(endless, limited, scene.opacity_logits)
        scene = Scene(**{**scene.arrays(), "opacity_logits": logits})
        notes.append(f"bounded {int(endless.sum()):,} infinite opacities")
    flat = np.isneginf(scene.log_scales).any(axis=1)
    if flat.any():
        log_scales = flat_log_scales(np.asarray(scene.log_scales))
        scene = Scene(**{**scene.arrays(), "log_scales": log_scales})
        notes.append(f"{int(flat.sum()):,} flat Gaussians (a log scale of -inf) made nearly flat")
    return scene, tuple(notes)


def repaired(scene: Scene, where: str) -> tuple[Scene, tuple[str, ...]]:
    """Repairs a scene so that ``check_values`` accepts it, with a line for each kind of change.

    After ``bounded``, a Gaussian with any other unusable value is dropped.

    Raises:
        SourceError: no Gaussian is left.
    """
    scene, changes = bounded(scene)
    notes = list(changes)
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


def flat_log_scales(log_scales: FloatArray) -> FloatArray:
    """Makes axes of no thickness (-inf) in ``[n, 3]`` 10,000 times thinner than the others."""
    flat = np.isneginf(log_scales)
    if not flat.any():
        return log_scales
    shortest = np.where(flat, np.inf, log_scales).min(axis=1)
    thin = np.where(np.isinf(shortest), _POINT, shortest + FLATNESS).astype(np.float32)
    return np.where(flat, thin[:, None], log_scales)


def visible(scene: Scene) -> Any:
    """Indices of the Gaussians that a renderer draws; None when that is all of them, or none."""
    limit = float(np.log(_INVISIBLE / (1 - _INVISIBLE)))
    drawn = np.flatnonzero(np.asarray(scene.opacity_logits) >= limit)
    return None if len(drawn) in (0, len(scene)) else drawn
