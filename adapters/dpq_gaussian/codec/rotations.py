"""The canonical form of a Gaussian's rotation: axes by length, a direction and a spin.

A Gaussian does not change when its axes are renamed or turned by 180 degrees. Naming them by
length makes scales cheaper to code. The rotation is told by the direction of the axis that differs
most from the other two, the longest of a needle or the shortest of a disc, and by the spin around
it, which hardly matters where the other two are nearly equal, and is then stored coarsely.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_jit = numba.njit(cache=True, nogil=True)


@_jit
def _sorted_axes(log_scales: Any, rotations: Any, logs: Any, axes: Any) -> None:
    """Descending logs float64 [n, 3] and the axes they belong to, rows of float64 [n, 3, 3]."""
    q = np.empty(4)
    r = np.empty((3, 3))
    for i in range(len(log_scales)):
        a, b, c = 0, 1, 2
        s = log_scales[i]
        if s[a] < s[b]:
            a, b = b, a
        if s[b] < s[c]:
            b, c = c, b
        if s[a] < s[b]:
            a, b = b, a
        logs[i, 0], logs[i, 1], logs[i, 2] = s[a], s[b], s[c]
        largest = 0.0
        for k in range(4):
            q[k] = rotations[i, k]
            largest = max(largest, abs(q[k]))
        q /= largest
        q /= np.sqrt((q * q).sum())
        w, x, y, z = q
        r[0] = 1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)
        r[1] = 2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)
        r[2] = 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)
        axes[i, 0], axes[i, 1], axes[i, 2] = r[a], r[b], r[c]


@_jit
def _frame(u: Any, v: Any, f: Any) -> None:
    """Rows of f: the direction at (u, v) on the octahedral hemisphere, and two across it."""
    px, py = 0.5 * (u + v), 0.5 * (u - v)
    pz = max(0.0, 1.0 - abs(px) - abs(py))
    length = np.sqrt(px * px + py * py + pz * pz)
    x, y, z = px / length, py / length, pz / length
    # Duff et al. 2017, for z >= 0: smooth all over the hemisphere.
    a = -1.0 / (1.0 + z)
    b = x * y * a
    f[0] = x, y, z
    f[1] = 1.0 + x * x * a, b, -x
    f[2] = b, 1.0 + y * y * a, -y


@_jit
def _turns(axes: Any, disc: Any, grid: Any, spins: Any, symbols: Any) -> None:
    """Axes [n, 3, 3] -> symbols int32 [n, 3]: two of the direction and one of the spin.

    Args:
        axes: as ``_sorted_axes`` gives them.
        disc: bool [n], whether the shortest axis is told, and not the longest.
        grid: float64 [n], grid points per unit of the hemisphere's coordinates.
        spins: int64 [n], steps of the spin in half a turn.
        symbols: out.
    """
    f = np.empty((3, 3))
    for i in range(len(axes)):
        d = axes[i, 2] if disc[i] else axes[i, 0]
        side = axes[i, 0] if disc[i] else axes[i, 1]
        sign = 1.0 if d[2] >= 0 else -1.0
        total = sign / (abs(d[0]) + abs(d[1]) + abs(d[2]))
        px, py = d[0] * total, d[1] * total
        u, v = np.rint((px + py) * grid[i]), np.rint((px - py) * grid[i])
        _frame(u / grid[i], v / grid[i], f)
        along = side[0] * f[1, 0] + side[1] * f[1, 1] + side[2] * f[1, 2]
        across = side[0] * f[2, 0] + side[1] * f[2, 1] + side[2] * f[2, 2]
        spin = np.rint(np.arctan2(across, along) * (spins[i] / np.pi))
        symbols[i, 0], symbols[i, 1] = u, v
        symbols[i, 2] = np.int64(spin + 2 * spins[i]) % spins[i]


@_jit
def _quaternions(symbols: Any, disc: Any, grid: Any, spins: Any, out: Any) -> None:
    """The inverse of ``_turns``: unit quaternions float32 [n, 4]."""
    for i in range(len(symbols)):
        u, v = symbols[i, 0] / grid[i], symbols[i, 1] / grid[i]
        px, py = 0.5 * (u + v), 0.5 * (u - v)
        pz = max(0.0, 1.0 - abs(px) - abs(py))
        length = np.sqrt(px * px + py * py + pz * pz)
        # The shortest turn from z to the direction; its x and y axes are those of ``_frame``.
        w = 1.0 + pz / length
        x, y = -py / length, px / length
        scale = 1.0 / np.sqrt(w * w + x * x + y * y)
        w, x, y = w * scale, x * scale, y * scale
        half = symbols[i, 2] * (0.5 * np.pi / spins[i])
        c, s = np.cos(half), np.sin(half)  # the spin, about z
        w, x, y, z = w * c, x * c + y * s, y * c - x * s, w * s
        if not disc[i]:  # x, y, z become y, z, x: the direction is the first axis
            w, x, y, z = (
                0.5 * (w + x + y + z),
                0.5 * (x - w - y + z),
                0.5 * (y - w - z + x),
                0.5 * (z - w - x + y),
            )
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = w, x, y, z


def sorted_axes(
    log_scales: FloatArray, rotations: FloatArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Descending log scales float64 ``[n, 3]``, and the axes they belong to, rows ``[n, 3, 3]``.

    Args:
        log_scales: ``[n, 3]``.
        rotations: quaternions ``[n, 4]``, of any length above 0.
    """
    logs, axes = np.empty((len(log_scales), 3)), np.empty((len(log_scales), 3, 3))
    _sorted_axes(np.ascontiguousarray(log_scales), np.ascontiguousarray(rotations), logs, axes)
    return logs, axes


def turns(
    axes: npt.NDArray[np.float64],
    disc: npt.NDArray[np.bool_],
    grid: npt.NDArray[np.float64],
    spins: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    """Symbols int32 ``[n, 3]`` of rotations: two of a direction, one of the spin around it.

    Args:
        axes: by length, rows ``[n, 3, 3]``.
        disc: the direction is the shortest axis', not the longest ``[n]``.
        grid: grid points per unit of the hemisphere's coordinates ``[n]``.
        spins: steps of the spin in half a turn ``[n]``.
    """
    symbols = np.empty((len(axes), 3), np.int32)
    _turns(axes, disc, grid, spins, symbols)
    return symbols


def quaternions(
    symbols: npt.NDArray[np.int32],
    disc: npt.NDArray[np.bool_],
    grid: npt.NDArray[np.float64],
    spins: npt.NDArray[np.int64],
) -> FloatArray:
    """Unit quaternions float32 ``[n, 4]`` that turn x, y, z to the axes; inverse of ``turns``."""
    out = np.empty((len(symbols), 4), np.float32)
    _quaternions(symbols, disc, grid, spins, out)
    return out
