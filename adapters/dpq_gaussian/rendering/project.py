"""Gaussians seen by a camera: the EWA projection and its gradient, in float64 (numba).

All of it is in one file because numba's disk cache notices changes of the jitted function's file
only. Equations: Kerbl et al. 2023, section 4; Ye et al. 2024 (gsplat), appendix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from dpq_gaussian.rendering.constants import (
    DEPTH,
    DILATION,
    INV_U,
    INV_V,
    MEAN_X,
    MEAN_Y,
    MIN_ALPHA,
    OPACITY,
    REACH,
    SLOPE,
)

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"}))

LENS = 13
"""Of a packed camera beside its rotation: translation 3, fx, fy, cx, cy, the bounds of x / z and of
y / z between which the projection is linearised (2 + 2), near, 1 for anti-aliasing."""
_FX, _FY, _CX, _CY, _X0, _X1, _Y0, _Y1, _NEAR, _SMOOTH = range(3, 13)
_FIELDS = (MEAN_X, MEAN_Y, INV_U, SLOPE, INV_V, OPACITY, DEPTH, REACH)


@_jit
def _rotation(q: Any, r: Any) -> Any:
    """Fill ``r`` [3, 3] from a quaternion w, x, y, z of any length; returns 1 / length."""
    w, x, y, z = np.float64(q[0]), np.float64(q[1]), np.float64(q[2]), np.float64(q[3])
    scale = 1.0 / max(math.sqrt(w * w + x * x + y * y + z * z), 1e-30)
    w, x, y, z = w * scale, x * scale, y * scale, z * scale
    r[0, 0], r[0, 1], r[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    r[1, 0], r[1, 1], r[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    r[2, 0], r[2, 1], r[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return scale


@_jit
def _seen(position: Any, turn: Any, lens: Any, seen: Any) -> None:
    """Position in the camera's axes: seen[:3]."""
    for i in range(3):
        seen[i] = lens[i]
        for k in range(3):
            seen[i] += turn[i, k] * np.float64(position[k])


@_jit
def _footprint(seen: Any, turn: Any, lens: Any, rotation: Any, stds: Any, t: Any, f: Any) -> Any:
    """Jacobian times camera rotation t [2, 3] and f = t R S [2, 3], so that cov = f f^T.

    Returns x / z and y / z, clamped where the linearisation would blow up.
    """
    rz = 1.0 / seen[2]
    rx = min(max(seen[0] * rz, lens[_X0]), lens[_X1])
    ry = min(max(seen[1] * rz, lens[_Y0]), lens[_Y1])
    for k in range(3):
        t[0, k] = lens[_FX] * rz * (turn[0, k] - rx * turn[2, k])
        t[1, k] = lens[_FY] * rz * (turn[1, k] - ry * turn[2, k])
    for i in range(2):
        for j in range(3):
            f[i, j] = stds[j] * (
                t[i, 0] * rotation[0, j] + t[i, 1] * rotation[1, j] + t[i, 2] * rotation[2, j]
            )
    return rx, ry


@_jit
def _covariance(f: Any) -> Any:
    """Dilated variances xx, xy, yy, their determinant and that before the dilation."""
    xx = f[0, 0] ** 2 + f[0, 1] ** 2 + f[0, 2] ** 2
    yy = f[1, 0] ** 2 + f[1, 1] ** 2 + f[1, 2] ** 2
    xy = f[0, 0] * f[1, 0] + f[0, 1] * f[1, 1] + f[0, 2] * f[1, 2]
    # Lagrange's identity: xx yy - xy^2 as a sum of squares does not cancel.
    bare = (f[0, 1] * f[1, 2] - f[0, 2] * f[1, 1]) ** 2
    bare += (f[0, 2] * f[1, 0] - f[0, 0] * f[1, 2]) ** 2
    bare += (f[0, 0] * f[1, 1] - f[0, 1] * f[1, 0]) ** 2
    whole = bare + DILATION * (xx + yy) + DILATION * DILATION
    return xx + DILATION, xy, yy + DILATION, whole, bare


@_jit
def project(first: Any, last: Any, scene: Any, camera: Any, size: Any, splats: Any) -> None:
    """Project the Gaussians ``first <= g < last``; REACH is 0 for those that are not seen.

    Args:
        first: Gaussian to begin with.
        last: Gaussian to stop before.
        scene: positions float32 [N, 3], log_scales [N, 3], rotations [N, 4], opacity_logits [N].
        camera: rotation float64 [3, 3]; lens float64 [LENS].
        size: width and height in pixels.
        splats: float32 [N, FIELDS], overwritten but for the colours.
    """
    positions, log_scales, rotations, logits = scene
    turn, lens = camera
    width, height = size
    mean_x, mean_y, inv_u, slope, inv_v, opacity, depth, reach = _FIELDS
    seen, stds, rotation = np.empty(3), np.empty(3), np.empty((3, 3))
    t, f = np.empty((2, 3)), np.empty((2, 3))
    for g in range(first, last):
        splats[g, reach] = 0
        _seen(positions[g], turn, lens, seen)
        strength = 1.0 / (1.0 + math.exp(-np.float64(logits[g])))
        if not (seen[2] > lens[_NEAR] and strength >= MIN_ALPHA):
            continue
        for j in range(3):
            stds[j] = math.exp(np.float64(log_scales[g, j]))
        _rotation(rotations[g], rotation)
        _footprint(seen, turn, lens, rotation, stds, t, f)
        xx, xy, yy, whole, bare = _covariance(f)
        if lens[_SMOOTH] > 0:
            strength *= math.sqrt(bare / whole)
        x = lens[_FX] * seen[0] / seen[2] + lens[_CX]
        y = lens[_FY] * seen[1] / seen[2] + lens[_CY]
        if not (strength >= MIN_ALPHA and whole < 1e30 and abs(x) + abs(y) < 1e15):
            continue
        stretch = math.sqrt(2.0 * math.log(strength / MIN_ALPHA))
        wide, high = stretch * math.sqrt(xx), stretch * math.sqrt(yy)
        if x + wide < 0 or x - wide > width or y + high < 0 or y - high > height:
            continue
        splats[g, mean_x], splats[g, mean_y] = x, y
        splats[g, inv_u], splats[g, inv_v] = math.sqrt(yy / whole), 1.0 / math.sqrt(yy)
        splats[g, slope] = xy / yy
        splats[g, opacity], splats[g, depth] = strength, seen[2]
        splats[g, reach] = max(stretch, 1e-6)  # 0 means unseen


@_jit
def project_grad(
    first: Any, last: Any, visible: Any, scene: Any, camera: Any, sums: Any, grads: Any
) -> None:  # fmt: skip
    """Gradients of the Gaussians of the splats ``first <= i < last``.

    Args:
        first: splat to begin with.
        last: splat to stop before.
        visible: int64 [V], the Gaussian of each splat.
        scene: as for ``project``.
        camera: as for ``project``.
        sums: float32 [V, GRADIENTS], summed over the tiles.
        grads: four arrays like ``scene``, and float32 [N, 2] for the means in pixels; overwritten.
    """
    positions, log_scales, rotations, logits = scene
    turn, lens = camera
    seen, stds, rotation = np.empty(3), np.empty(3), np.empty((3, 3))
    t, f, vt, vf = np.empty((2, 3)), np.empty((2, 3)), np.empty((2, 3)), np.empty((2, 3))
    vr = np.empty((3, 3))
    for i in range(first, last):
        g = visible[i]
        _seen(positions[g], turn, lens, seen)
        for j in range(3):
            stds[j] = math.exp(np.float64(log_scales[g, j]))
        scale = _rotation(rotations[g], rotation)
        rx, ry = _footprint(seen, turn, lens, rotation, stds, t, f)
        xx, xy, yy, whole, bare = _covariance(f)
        tilt, precise = xy / yy, yy / whole

        # Exponent -(u^2 precise + dy^2 / yy) / 2 with u = dx - tilt dy.
        v, v_u, v_uu = np.float64(sums[i, 0]), np.float64(sums[i, 1]), np.float64(sums[i, 2])
        v_y, v_yu, v_yy = np.float64(sums[i, 3]), np.float64(sums[i, 4]), np.float64(sums[i, 5])
        v_mx = precise * v_u
        v_my = -tilt * precise * v_u + v_y / yy
        v_precise, v_tilt = -0.5 * v_uu, precise * v_yu
        gxx = -precise * precise * v_precise
        gxy = -2 * tilt * gxx + v_tilt / yy
        gyy = tilt * tilt * gxx - tilt / yy * v_tilt + 0.5 * v_yy / (yy * yy)

        strength = 1.0 / (1.0 + math.exp(-np.float64(logits[g])))
        v_logit = v * (1.0 - strength)  # v = opacity x its gradient
        if lens[_SMOOTH] > 0:  # opacity = strength sqrt(bare / whole)
            v_bare, v_whole = 0.5 * v / bare, -0.5 * v / whole
            gxx += v_bare * (yy - DILATION) + v_whole * yy
            gyy += v_bare * (xx - DILATION) + v_whole * xx
            gxy -= 2 * xy * (v_bare + v_whole)

        for j in range(3):
            vf[0, j] = 2 * gxx * f[0, j] + gxy * f[1, j]
            vf[1, j] = 2 * gyy * f[1, j] + gxy * f[0, j]
            grads[1][g, j] = vf[0, j] * f[0, j] + vf[1, j] * f[1, j]
        for k in range(3):
            for j in range(3):
                vr[k, j] = stds[j] * (t[0, k] * vf[0, j] + t[1, k] * vf[1, j])
            for a in range(2):
                vt[a, k] = 0.0
                for j in range(3):
                    vt[a, k] += vf[a, j] * stds[j] * rotation[k, j]
        _quaternion_grad(rotations[g], scale, vr, grads[2][g])
        grads[3][g] = v_logit
        grads[4][g, 0], grads[4][g, 1] = v_mx, v_my

        # t[0] = fx / z (turn[0] - rx turn[2]), the same for y; rx = x / z unless clamped.
        rz = 1.0 / seen[2]
        fx, fy = lens[_FX] * rz, lens[_FY] * rz
        v_rx, v_ry, v_z = 0.0, 0.0, np.float64(sums[i, 9])
        for k in range(3):
            v_rx -= vt[0, k] * fx * turn[2, k]
            v_ry -= vt[1, k] * fy * turn[2, k]
            v_z -= rz * (vt[0, k] * t[0, k] + vt[1, k] * t[1, k])
        if rx != seen[0] * rz:
            v_rx = 0.0
        if ry != seen[1] * rz:
            v_ry = 0.0
        v_x, v_y = rz * v_rx + fx * v_mx, rz * v_ry + fy * v_my
        v_z -= rz * (seen[0] * v_x + seen[1] * v_y)
        for k in range(3):
            grads[0][g, k] = turn[0, k] * v_x + turn[1, k] * v_y + turn[2, k] * v_z


@_jit
def _quaternion_grad(q: Any, scale: Any, vr: Any, out: Any) -> None:
    """Gradient of a quaternion of length 1 / scale from that of its rotation matrix."""
    w, x, y, z = q[0] * scale, q[1] * scale, q[2] * scale, q[3] * scale
    gw = 2 * (x * (vr[2, 1] - vr[1, 2]) + y * (vr[0, 2] - vr[2, 0]) + z * (vr[1, 0] - vr[0, 1]))
    gx = 2 * (
        y * (vr[0, 1] + vr[1, 0]) + z * (vr[0, 2] + vr[2, 0]) + w * (vr[2, 1] - vr[1, 2])
    ) - 4 * x * (vr[1, 1] + vr[2, 2])
    gy = 2 * (
        x * (vr[0, 1] + vr[1, 0]) + z * (vr[1, 2] + vr[2, 1]) + w * (vr[0, 2] - vr[2, 0])
    ) - 4 * y * (vr[0, 0] + vr[2, 2])
    gz = 2 * (
        x * (vr[0, 2] + vr[2, 0]) + y * (vr[1, 2] + vr[2, 1]) + w * (vr[1, 0] - vr[0, 1])
    ) - 4 * z * (vr[0, 0] + vr[1, 1])
    along = w * gw + x * gx + y * gy + z * gz
    out[0], out[1] = (gw - along * w) * scale, (gx - along * x) * scale
    out[2], out[3] = (gy - along * y) * scale, (gz - along * z) * scale
