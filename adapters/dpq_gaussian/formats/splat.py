"""The .splat of antimatter15: 32 bytes per Gaussian, no header, no harmonics beyond colour."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from dpq_core.errors import SourceError
from dpq_gaussian.formats.clipping import Clipped
from dpq_gaussian.formats.levels import LOGIT_OF_LEVEL, SH_C0, opacities, to_level, unit
from dpq_gaussian.formats.loaded import Loaded, check_claim
from dpq_gaussian.formats.stream import SceneStream
from dpq_gaussian.scene import Scene

RECORD = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)]
)

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)
"""Bounds of a scale, which is stored as such and not as its logarithm."""

SCALES_KEPT = (float(np.log(SMALLEST)), float(np.log(LARGEST)))
COLOURS_KEPT = (-(0.5 + 1 / 510) / SH_C0, (0.5 + 1 / 510) / SH_C0)
"""Values beyond these are clipped, and not only rounded."""


def read(path: Path) -> Loaded:
    """Read a scene; positions are a view into the mapped file.

    Raises:
        SourceError: the size is not a multiple of 32 bytes.
    """
    size = path.stat().st_size
    if size % RECORD.itemsize:
        raise SourceError(f"{path}: {size:,} bytes are not a multiple of 32, so not a .splat file")
    check_claim(path, size // RECORD.itemsize, size, size)
    rows = np.memmap(path, RECORD, "r")
    colour = rows["rgba"][:, :3].astype(np.float32) / np.float32(255.0)
    with np.errstate(invalid="ignore"):  # NaN stays NaN: see check_values
        log_scales = np.log(np.clip(rows["scale"], SMALLEST, LARGEST))
    scene = Scene(
        positions=rows["position"].view(np.ndarray),
        log_scales=log_scales.view(np.ndarray),
        # The viewer's own decoding; 128 is zero.
        rotations=((rows["rotation"].astype(np.float32) - 128.0) / 128.0).view(np.ndarray),
        opacity_logits=LOGIT_OF_LEVEL[rows["rgba"][:, 3]],
        sh_dc=((colour - 0.5) / np.float32(SH_C0)).view(np.ndarray),
        sh_rest=np.zeros((len(rows), 0, 3), dtype=np.float32),
    )
    return Loaded(scene=scene, format="splat")


def write(file: BinaryIO, stream: SceneStream) -> tuple[str, ...]:
    """Writes the Gaussians in their order; harmonics beyond colour are dropped.

    Returns:
        Notes for the user: what was clipped.
    """
    clipped = Clipped(".splat")
    for scene in stream.chunks:
        rows = np.empty(len(scene), dtype=RECORD)
        rows["position"] = scene.positions
        with np.errstate(over="ignore"):
            rows["scale"] = np.clip(np.exp(scene.log_scales), SMALLEST, LARGEST)
        rows["rgba"][:, :3] = to_level((0.5 + SH_C0 * scene.sh_dc) * 255.0)
        rows["rgba"][:, 3] = to_level(opacities(scene.opacity_logits) * 255.0)
        rows["rotation"] = to_level(unit(scene.rotations) * 128.0 + 128.0)
        file.write(rows.tobytes())
        clipped.count("color", scene.sh_dc, *COLOURS_KEPT)
        clipped.count("scales", scene.log_scales, *SCALES_KEPT)
    return clipped.notes()
