"""Conversions between 8-bit levels and values that several splat formats share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dpq_gaussian.scene import FloatArray

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]

SH_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 * sh_dc."""

OPAQUE = 1.0 - 1e-6
"""Opacity that the levels 0 and 255 stand for (its complement at 0): their logit is infinite."""


def logits(opacity: Floats) -> FloatArray:
    """Inverse sigmoid of opacities; 0 and 1 become finite."""
    inside = np.clip(opacity.astype(np.float64), 1.0 - OPAQUE, OPAQUE)
    return np.log(inside / (1.0 - inside)).astype(np.float32)


LOGIT_OF_LEVEL = logits(np.arange(256) / 255.0)
"""float32 ``[256]``: opacity logit of an 8-bit opacity."""


def opacities(logit: FloatArray) -> FloatArray:
    """Sigmoid, without overflow for any finite logit."""
    bounded = np.clip(logit, -80.0, 80.0)
    return (1.0 / (1.0 + np.exp(-bounded))).astype(np.float32)


def to_level(values: Floats) -> Bytes:
    """Nearest level 0 to 255 of values in units of levels."""
    levels: Bytes = np.clip(np.floor(values + 0.5), 0.0, 255.0).astype(np.uint8)
    return levels


def unit(rotations: FloatArray) -> FloatArray:
    """Quaternions ``[N, 4]`` of length one; exact for any finite length above zero."""
    wide = rotations.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / lengths, dtype=np.float32)


def fill_largest(rotations: FloatArray, index: npt.NDArray[np.intp]) -> FloatArray:
    """Set the component ``index[n]`` of row n so that the quaternion has length one.

    Args:
        rotations: float32 ``[N, 4]``, zero at that component; changed in place.
        index: intp ``[N]``.

    Returns:
        ``rotations``.
    """
    rest = 1.0 - np.einsum("nk,nk->n", rotations, rotations, dtype=np.float64)
    rotations[np.arange(len(rotations)), index] = np.sqrt(np.maximum(rest, 0.0))
    return rotations
