"""Colours of Gaussians seen from a point: spherical harmonics of degree 0 to 3 (numba).

All of it is in one file because numba's disk cache notices changes of the jitted function's file
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from dpq_gaussian.rendering.constants import RED

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"}))

C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)
_RED = RED


@_jit
def _basis(x: Any, y: Any, z: Any, degree: Any, b: Any) -> None:
    """Harmonics of degree 1 to ``degree`` at a unit vector: b[:3], b[:8] or b[:15]."""
    if degree > 0:
        b[0], b[1], b[2] = -C1 * y, C1 * z, -C1 * x
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        b[3], b[4] = C2[0] * x * y, C2[1] * y * z
        b[5] = C2[2] * (2 * zz - xx - yy)
        b[6], b[7] = C2[1] * x * z, C2[3] * (xx - yy)
        if degree > 2:
            b[8] = C3[0] * y * (3 * xx - yy)
            b[9] = C3[1] * x * y * z
            b[10] = C3[2] * y * (4 * zz - xx - yy)
            b[11] = C3[3] * z * (2 * zz - 3 * xx - 3 * yy)
            b[12] = C3[2] * x * (4 * zz - xx - yy)
            b[13] = C3[4] * z * (xx - yy)
            b[14] = C3[0] * x * (xx - 3 * yy)


@_jit
def _slopes(x: Any, y: Any, z: Any, degree: Any, s: Any) -> None:
    """Derivatives of the harmonics by x, y and z, taken as polynomials of all space: s[15, 3]."""
    s[:] = 0
    if degree > 0:
        s[0, 1], s[1, 2], s[2, 0] = -C1, C1, -C1
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        s[3, 0], s[3, 1] = C2[0] * y, C2[0] * x
        s[4, 1], s[4, 2] = C2[1] * z, C2[1] * y
        s[5, 0], s[5, 1], s[5, 2] = -2 * C2[2] * x, -2 * C2[2] * y, 4 * C2[2] * z
        s[6, 0], s[6, 2] = C2[1] * z, C2[1] * x
        s[7, 0], s[7, 1] = 2 * C2[3] * x, -2 * C2[3] * y
        if degree > 2:
            s[8, 0], s[8, 1] = C3[0] * 6 * x * y, C3[0] * 3 * (xx - yy)
            s[9, 0], s[9, 1], s[9, 2] = C3[1] * y * z, C3[1] * x * z, C3[1] * x * y
            s[10, 0], s[10, 1] = -2 * C3[2] * x * y, C3[2] * (4 * zz - xx - 3 * yy)
            s[10, 2] = 8 * C3[2] * y * z
            s[11, 0], s[11, 1] = -6 * C3[3] * x * z, -6 * C3[3] * y * z
            s[11, 2] = C3[3] * (6 * zz - 3 * xx - 3 * yy)
            s[12, 0], s[12, 1] = C3[2] * (4 * zz - 3 * xx - yy), -2 * C3[2] * x * y
            s[12, 2] = 8 * C3[2] * x * z
            s[13, 0], s[13, 1] = 2 * C3[4] * x * z, -2 * C3[4] * y * z
            s[13, 2] = C3[4] * (xx - yy)
            s[14, 0], s[14, 1] = C3[0] * (3 * xx - 3 * yy), -6 * C3[0] * x * y


@_jit
def _direction(position: Any, eye: Any) -> Any:
    x, y, z = position[0] - eye[0], position[1] - eye[1], position[2] - eye[2]
    length = math.sqrt(x * x + y * y + z * z)
    scale = 1.0 / max(length, 1e-30)
    return np.float32(x * scale), np.float32(y * scale), np.float32(z * scale), scale


@_jit
def shade(
    first: Any, last: Any, visible: Any, scene: Any, eye: Any, degree: Any, splats: Any
) -> None:
    """Fill in the colours of the splats ``first <= i < last``.

    Args:
        first: splat to begin with.
        last: splat to stop before.
        visible: int64 [V], the Gaussian of each splat.
        scene: positions float32 [N, 3], sh_dc [N, 3], sh_rest [N, M, 3].
        eye: float64 [3], where the camera stands.
        degree: highest degree of harmonics to use, 0 to 3.
        splats: float32 [V, FIELDS]; RED, GREEN and BLUE are overwritten.
    """
    positions, sh_dc, sh_rest = scene
    terms = (degree + 1) ** 2 - 1
    b = np.empty(15, np.float32)
    for i in range(first, last):
        g = visible[i]
        x, y, z, _ = _direction(positions[g], eye)
        _basis(x, y, z, degree, b)
        red = np.float32(0.5) + np.float32(C0) * sh_dc[g, 0]
        green = np.float32(0.5) + np.float32(C0) * sh_dc[g, 1]
        blue = np.float32(0.5) + np.float32(C0) * sh_dc[g, 2]
        for m in range(terms):
            red += b[m] * sh_rest[g, m, 0]
            green += b[m] * sh_rest[g, m, 1]
            blue += b[m] * sh_rest[g, m, 2]
        splats[i, _RED] = max(red, np.float32(0))
        splats[i, _RED + 1] = max(green, np.float32(0))
        splats[i, _RED + 2] = max(blue, np.float32(0))


@_jit
def shade_grad(
    first: Any, last: Any, visible: Any, scene: Any, eye: Any, degree: Any, splats: Any,
    colour_grads: Any, grads: Any,
) -> None:  # fmt: skip
    """Gradients of positions and harmonics from those of the colours.

    Args:
        first: as for ``shade``.
        last: as for ``shade``.
        visible: as for ``shade``.
        scene: as for ``shade``.
        eye: as for ``shade``.
        degree: as for ``shade``.
        splats: what ``shade`` made.
        colour_grads: float32 [V, 3].
        grads: arrays like ``scene``: the first is added to, the others are overwritten.
    """
    positions, _, sh_rest = scene
    position_grads, dc_grads, rest_grads = grads
    terms = (degree + 1) ** 2 - 1
    b = np.empty(15, np.float32)
    s = np.empty((15, 3), np.float32)
    v = np.empty(3, np.float32)
    for i in range(first, last):
        g = visible[i]
        for c in range(3):  # at 0 the colour is clamped
            v[c] = colour_grads[i, c] if splats[i, _RED + c] > 0 else 0
            dc_grads[g, c] = np.float32(C0) * v[c]
        if terms == 0:
            continue
        x, y, z, scale = _direction(positions[g], eye)
        _basis(x, y, z, degree, b)
        _slopes(x, y, z, degree, s)
        dx, dy, dz = np.float32(0), np.float32(0), np.float32(0)
        for m in range(terms):
            gain = np.float32(0)
            for c in range(3):
                rest_grads[g, m, c] = b[m] * v[c]
                gain += v[c] * sh_rest[g, m, c]
            dx += gain * s[m, 0]
            dy += gain * s[m, 1]
            dz += gain * s[m, 2]
        along = x * dx + y * dy + z * dz  # the direction has unit length
        position_grads[g, 0] += (dx - along * x) * scale
        position_grads[g, 1] += (dy - along * y) * scale
        position_grads[g, 2] += (dz - along * z) * scale
