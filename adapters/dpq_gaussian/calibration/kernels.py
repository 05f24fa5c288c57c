"""Compiled loops of calibration: rotations, order of positions, rounding and bit estimates."""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpq_gaussian.codec.positions import parting_bit

_jit = numba.njit(cache=True, nogil=True)

FloatArray = npt.NDArray[np.float32]

_UNSEEN = 0.1
"""Occurrences that a level is given which does not occur."""


@_jit
def _turned(axes: Any, angles: Any, out: Any) -> None:
    """Axes [n, 3, 3], each row turned by a rotation vector [n, 3] (Rodrigues)."""
    for i in range(len(axes)):
        x, y, z = angles[i, 0], angles[i, 1], angles[i, 2]
        angle = np.sqrt(x * x + y * y + z * z)
        if angle < 1e-12:
            out[i] = axes[i]
            continue
        x, y, z = x / angle, y / angle, z / angle
        c, s = np.cos(angle), np.sin(angle)
        for k in range(3):
            a, b, d = axes[i, k, 0], axes[i, k, 1], axes[i, k, 2]
            along = (x * a + y * b + z * d) * (1 - c)
            out[i, k, 0] = a * c + (y * d - z * b) * s + x * along
            out[i, k, 1] = b * c + (z * a - x * d) * s + y * along
            out[i, k, 2] = d * c + (x * b - y * a) * s + z * along


def rotated_axes(
    axes: npt.NDArray[np.float64], angles: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Rotates unit vectors (rows of ``[n, 3, 3]``) by rotation vectors ``[n, 3]``."""
    out = np.empty_like(axes)
    _turned(axes, angles, out)
    return out


@_jit
def _ordered(first: Any, second: Any, depth: Any) -> Any:
    """Whether ``second`` does not precede ``first`` in Morton order, compared to one depth."""
    x, y, z = np.uint64(first[0]), np.uint64(first[1]), np.uint64(first[2])
    a, b, c = np.uint64(second[0]), np.uint64(second[1]), np.uint64(second[2])
    bit = parting_bit(x ^ a, y ^ b, z ^ c)
    if bit >= 3 * depth:
        return True
    return (np.uint64(second[bit % 3]) >> np.uint64(31 - bit // 3)) & np.uint64(1) == 1


@_jit
def _placed(base: Any, moved: Any, depth: Any, out: Any) -> None:
    for i in range(len(base)):
        out[i] = moved[i]
        fits = i == 0 or _ordered(out[i - 1], moved[i], min(depth[i - 1], depth[i]))
        if fits and i + 1 < len(base):  # the next one can always stay
            fits = _ordered(moved[i], base[i + 1], min(depth[i], depth[i + 1]))
        if not fits:
            out[i] = base[i]


def kept_in_order(
    base: npt.NDArray[np.uint32], moved: npt.NDArray[np.uint32], depth: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Moves Gaussians to new positions, unless that would break the Morton order.

    Args:
        base: positions on the octree's finest grid ``[n, 3]``, in Morton order.
        moved: where they should be.
        depth: levels of the octree at which each is stored ``[n]``.
    """
    out = np.empty_like(base)
    _placed(base, moved, depth, out)
    return out


@_jit
def _levels(latents: Any, dead_zone: Any, symbols: Any, counts: Any) -> None:
    for i in range(latents.shape[0]):
        counts[i] = 0
        for j in range(latents.shape[1]):
            value = min(max(latents[i, j], np.float32(-32766)), np.float32(32766))
            level = np.floor(abs(value) + dead_zone)
            symbols[i, j] = -level if value < 0 else level
            if level != 0:
                counts[i] = j + 1


def round_with_dead_zone(
    latents: FloatArray, dead_zone: float
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]:
    """Rounds harmonics ``[n, R]`` with a dead zone; also counts the stored symbols ``[n]``.

    Args:
        latents: in steps.
        dead_zone: what is added before a magnitude is rounded down.
    """
    symbols = np.empty(latents.shape, np.int16)
    counts = np.empty(len(latents), np.int32)
    _levels(latents, np.float32(dead_zone), symbols, counts)
    return symbols, counts


@_jit
def _adjoint(grads: Any, gains: Any, keep: Any, out: Any) -> None:
    later = np.zeros(grads.shape[1], np.float32)
    for back in range(len(grads)):
        i = len(grads) - 1 - back
        for k in range(grads.shape[1]):
            total = grads[i, k] + gains[i] * later[k]
            out[i, k] = total
            later[k] = (1 - gains[i]) * later[k] + keep * total


def prediction_adjoint(grads: FloatArray, gains: FloatArray, keep: float) -> FloatArray:
    """Back-propagates through the running-mean prediction of one chunk (FORMAT.md, G9).

    Args:
        grads: by the harmonics that are restored ``[n, m]``.
        gains: share of each Gaussian in the running mean ``[n]``.
        keep: share of the running mean that is the prediction.
    """
    out = np.empty_like(grads)
    _adjoint(grads, gains, np.float32(keep), out)
    return out


@_jit
def _segment(value: Any, tables: Any, group: Any, column: Any, low: Any, boost: Any) -> Any:
    """The two levels around a latent, the smaller first, and the slope of the bits between.

    Nodes are what levels are restored as: 0, 1 + boost, 2 + boost ... and their negatives.
    """
    sign = np.float32(-1) if value < 0 else np.float32(1)
    level = 0 if abs(value) < 1 + boost else int(abs(value) - boost)
    near = sign * (level + boost) if level > 0 else np.float32(0)
    far = sign * (level + 1 + boost)
    last = tables.shape[2] - 1
    first = tables[group, column, min(max(int(sign) * level - low, 0), last)]
    second = tables[group, column, min(max(int(sign) * (level + 1) - low, 0), last)]
    return near, far, (second - first) / (far - near)


@_jit
def _slopes(latents: Any, groups: Any, tables: Any, low: Any, boost: Any, slopes: Any) -> None:
    for i in range(latents.shape[0]):
        for j in range(latents.shape[1]):
            slopes[i, j] = 0
            if latents[i, j] != 0:
                slopes[i, j] = _segment(latents[i, j], tables, groups[i], j, low, boost)[2]


@_jit
def _cheaper(
    latents: Any, groups: Any, tables: Any, low: Any, boost: Any, thrift: Any, out: Any
) -> None:
    for i in range(latents.shape[0]):
        for j in range(latents.shape[1]):
            value = latents[i, j]
            near, far, slope = _segment(value, tables, groups[i], j, low, boost)
            least, most = min(near, far), max(near, far)
            out[i, j] = min(max(value - thrift * slope, least), most)


@_jit
def _count(levels: Any, groups: Any, low: Any, counts: Any) -> None:
    last = counts.shape[2] - 1
    for i in range(levels.shape[0]):
        for j in range(levels.shape[1]):
            counts[groups[i], j, min(max(levels[i, j] - low, 0), last)] += 1


@_jit
def _total(levels: Any, groups: Any, tables: Any, low: Any) -> Any:
    total = 0.0
    for i in range(levels.shape[0]):
        for j in range(levels.shape[1]):
            total += tables[groups[i], j, levels[i, j] - low]
    return total


def bit_tables(levels: npt.NDArray[Any], groups: npt.NDArray[np.uint8]) -> tuple[FloatArray, int]:
    """Bits of each level by its frequency ``[groups, k, levels]``, and the lowest level.

    A column of a group has a table of its own; levels beside those that occur have a place too.

    Args:
        levels: integers ``[n, k]``.
        groups: group of each row ``[n]``.
    """
    low, high = int(levels.min(initial=0)) - 1, int(levels.max(initial=0)) + 1
    counts = np.full((int(groups.max()) + 1, levels.shape[1], high - low + 1), _UNSEEN)
    _count(levels, groups, low, counts)
    return -np.log2(counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32), low


def moved_to_fewer_bits(
    latents: FloatArray,
    levels: npt.NDArray[Any],
    groups: npt.NDArray[np.uint8],
    thrift: float,
    boost: float = 0.0,
) -> FloatArray:
    """Moves latents ``[n, k]`` towards cheaper symbols, at most to the next level.

    Args:
        latents: as of ``bits``, like the other arguments.
        levels: rounded latents.
        groups: group of each row.
        thrift: steps per bit.
        boost: addition to the magnitudes, in steps.
    """
    cost, low = bit_tables(levels, groups)
    out = np.empty_like(latents)
    _cheaper(latents, groups, cost, low, np.float32(boost), np.float32(thrift), out)
    return out


class _Bits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, levels: Any, groups: Any, boost: float) -> Tensor:
        values = np.ascontiguousarray(latents.detach().cpu().numpy())
        cost, low = bit_tables(levels, groups)
        slopes = np.empty(values.shape, np.float32)
        _slopes(values, groups, cost, low, np.float32(boost), slopes)
        ctx.save_for_backward(torch.from_numpy(slopes).to(latents.device))
        total = float(_total(levels, groups, cost, low))
        return torch.tensor(total, dtype=torch.float32, device=latents.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.saved_tensors[0], None, None, None


def bits(
    latents: Tensor, levels: npt.NDArray[Any], groups: npt.NDArray[np.uint8], boost: float = 0.0
) -> Tensor:
    """Estimates the bits of rounded latents ``[n, k]`` from frequencies, differentiably.

    The derivative is that of the linear interpolation between levels, frequencies taken as given.

    Args:
        latents: in steps.
        levels: the same, rounded.
        groups: group of each row ``[n]``; every column of a group has frequencies of its own.
        boost: in steps, added to every magnitude when it is restored.
    """
    return cast(Tensor, _Bits.apply(latents, levels, groups, boost))  # type: ignore[no-untyped-call]
