"""Transform coding of spherical harmonics: principal axes, dead zone and symbol counts.

The 3 x M coefficients of a Gaussian are one vector. Along the principal axes of all such vectors,
weighted by what is seen, the energy gathers in the first few; most of the others round to zero,
and are not stored: a count says where the last one is that is not.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

BASIS_SCALE = 127
"""Principal axes are stored as int8 in this unit."""

_jit = numba.njit(cache=True, nogil=True)


def principal_axes(
    vectors: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Orthonormal rows ``[m, m]`` by falling weighted energy of vectors ``[n, m]`` about zero.

    The sign of a row is fixed by its largest entry, so that equal data give equal bytes.
    """
    energy = (vectors * weights[:, None]).T @ vectors
    energy /= max(float(np.trace(energy)), 1e-300)
    axes = np.linalg.eigh(energy)[1].T[::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return np.ascontiguousarray(axes * np.where(largest < 0, -1.0, 1.0))


@_jit
def _quantize(
    vectors: Any,
    steps: Any,
    gains: Any,
    axes: Any,
    rounding: Any,
    keep: Any,
    symbols: Any,
    counts: Any,
) -> None:
    """Vectors float32 [n, m], steps and gains float64 [n] -> symbols int16 [n, m], counts [n].

    Args:
        vectors: what to code.
        steps: quantization step of each vector ``[n]``.
        gains: share of each in the prediction of those after it.
        axes: float64 [m, m].
        rounding: offset, share of an error that is handed on, and boost.
        keep: the prediction's share of the running mean.
        symbols: out.
        counts: out.
    """
    m = vectors.shape[1]
    offset, handed, boost = rounding
    owed, mean, predicted, stored = np.zeros(m), np.zeros(m), np.zeros(m), np.zeros(m)
    for i in range(len(vectors)):
        counts[i] = 0
        for k in range(m):
            predicted[k] = keep * mean[k]
            stored[k] = predicted[k]
        for j in range(m):
            total = 0.0
            for k in range(m):
                total += axes[j, k] * (vectors[i, k] - predicted[k])
            scaled = min(max(total / steps[i] + owed[j], -32766.0), 32766.0)
            level = np.floor(abs(scaled) + offset)
            if scaled < 0:
                level = -level
            symbols[i, j] = level
            owed[j] = handed * min(max(scaled - level, -1.0), 1.0)
            if level != 0:
                counts[i] = j + 1
                amount = (level + (boost if level > 0 else -boost)) * steps[i]
                for k in range(m):
                    stored[k] += amount * axes[j, k]
        for k in range(m):
            mean[k] += gains[i] * (stored[k] - mean[k])


@_jit
def _gather(symbols: Any, counts: Any, values: Any) -> None:
    at = 0
    for i in range(len(counts)):
        for j in range(counts[i]):
            values[at] = symbols[i, j]
            at += 1


@_jit
def _restore(
    counts: Any, values: Any, steps: Any, gains: Any, axes: Any, boost: Any, keep: Any, out: Any
) -> None:
    """Counts [n] and their values -> out float32 [n, m] by axes float32 [R, m]."""
    at = 0
    mean = np.zeros(out.shape[1], np.float32)
    for i in range(len(counts)):
        for k in range(out.shape[1]):
            out[i, k] = keep * mean[k]
        for j in range(counts[i]):
            v = values[at]
            at += 1
            if v != 0:
                size = abs(v) + boost
                amount = np.float32((size if v > 0 else -size) * steps[i])
                for k in range(out.shape[1]):
                    out[i, k] += amount * axes[j, k]
        for k in range(out.shape[1]):
            mean[k] += gains[i] * (out[i, k] - mean[k])


def quantize(
    vectors: FloatArray,
    steps: npt.NDArray[np.float64],
    gains: npt.NDArray[np.float64],
    axes: npt.NDArray[np.float64],
    rounding: tuple[float, float, float],
    keep: float,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]:
    """Symbols int16 ``[n, m]`` and counts int32 ``[n]`` of vectors ``[n, m]`` in order.

    Coded is the difference from ``keep`` times a running mean of what was coded before: neighbours
    are alike. A share of each error is handed on to the next Gaussian (error diffusion, Floyd and
    Steinberg 1976): neighbours blend in the same pixels, where their errors then cancel, and where
    all are too small to be stored, some are stored in proportion.

    Args:
        vectors: ``[n, m]``.
        steps: quantization step of each vector ``[n]``.
        gains: share of each in the running mean ``[n]``.
        axes: orthonormal rows ``[m, m]``.
        rounding: what is added before a magnitude is rounded down; share of the error, in steps,
            that the next Gaussian takes over; boost, see ``restore``.
        keep: share of the running mean that is the prediction.
    """
    symbols = np.empty(vectors.shape, np.int16)
    counts = np.empty(len(vectors), np.int32)
    _quantize(np.ascontiguousarray(vectors), steps, gains, axes, rounding, keep, symbols, counts)
    return symbols, counts


def gather(symbols: npt.NDArray[np.int16], counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int16]:
    """The first ``counts[i]`` symbols of each row, one row after the other."""
    values = np.empty(int(counts.sum()), np.int16)
    _gather(symbols, counts, values)
    return values


def restore(
    counts: npt.NDArray[np.int32],
    values: npt.NDArray[np.integer[Any]],
    steps: npt.NDArray[np.float64],
    gains: npt.NDArray[np.float64],
    axes: FloatArray,
    boost: float,
    keep: float,
) -> FloatArray:
    """Vectors float32 ``[n, m]``; the inverse of ``quantize`` and ``gather``.

    Args:
        counts: ``[n]``, at most R.
        values: ``[counts.sum()]``.
        steps: quantization step of each Gaussian ``[n]``.
        gains: share of each in the running mean ``[n]``.
        axes: ``[R, m]``.
        boost: in steps, added to every magnitude.
        keep: share of the running mean that is the prediction.
    """
    out = np.empty((len(counts), axes.shape[1]), np.float32)
    wide = steps.astype(np.float32), gains.astype(np.float32)
    _restore(counts, values, *wide, axes, np.float32(boost), np.float32(keep), out)
    return out
