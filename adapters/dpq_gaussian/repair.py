"""Make a scene with unusable values usable: what ``dpq export --repair`` does."""

from __future__ import annotations

import numpy as np

from dpq_core.errors import SourceError
from dpq_gaussian.scene import ROWS, Scene, bad_values

MOST_OPAQUE = np.float32(np.log((1 - 1e-6) / 1e-6))
"""Logit of opacity 1 - 1e-6: converters write full opacity as an infinite logit."""


def repaired(scene: Scene, where: str) -> tuple[Scene, tuple[str, ...]]:
    """A scene that ``check_values`` accepts, and one line for each kind of change.

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
