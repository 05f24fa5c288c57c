"""Compiled loops around ``nearest_jit``: packed codebooks, moments, exact distances (numba)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from dpq_core.kernels.cpu.units import GROUP, SLOT, START, STOP

F = TypeVar("F", bound=Callable[..., Any])
_jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True))
# Sums may be reordered (vectorised), but NaN and infinity must survive: they are looked for.
_jit_sum = cast(
    Callable[[F], F], numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
)


@_jit
def distances(
    units: Any,
    points: Any,
    codebooks: Any,
    codes: Any,
    groups_per_codebook: Any,
    pad: Any,
    out: Any,
) -> int:
    """Write squared distances to the assigned codewords to out float32 [G, P]."""
    G, d, _ = points.shape
    for u in range(units.shape[0]):
        g = units[u, GROUP]
        book = g // groups_per_codebook
        used = d - pad if g == G - 1 else d
        for p in range(units[u, START], units[u, STOP]):
            k = codes[g, p]
            total = np.float32(0)
            for i in range(used):
                delta = points[g, i, p] - codebooks[book, k, i]
                total += delta * delta
            out[g, p] = total
    return 0


@_jit
def pack_codebooks(books: Any, pad: Any, exact: Any, packed: Any, centres: Any) -> None:
    """Pack codebooks float32 [B, K, d] to [B or B + 1, Kpad, d + 1] and centres [B or B + 1, d].

    A packed row is -(c - centre), |c - centre|^2 / 2; rows past K are never nearest. The centre is
    zero for the exact form, which gains nothing from centring and would lose bits to its rounding.
    With ``pad`` the last codebook is packed once more, its last ``pad`` coordinates zeroed.
    """
    B, K, d = books.shape
    for n in range(packed.shape[0]):
        book = books[min(n, B - 1)]
        used = d - pad if n == B else d
        for i in range(d):
            total = 0.0
            for k in range(K):
                total += book[k, i]
            centres[n, i] = 0.0 if exact else total / K
        for k in range(packed.shape[1]):
            norm = 0.0
            for i in range(d):
                value = book[k, i] - centres[n, i] if k < K and i < used else np.float32(0)
                packed[n, k, i] = -value
                norm += np.float64(value) * np.float64(value)
            packed[n, k, d] = 0.5 * norm if k < K else np.inf


@_jit_sum
def moments(units: Any, points: Any, weights: Any, out: Any) -> int:
    """Add sums per slot to out float64 [slots, 2 d + 1]: w x and w x^2 by coordinate, then w."""
    d = points.shape[1]
    for u in range(units.shape[0]):
        g, slot = units[u, GROUP], units[u, SLOT]
        if slot < 0:
            continue
        start, stop = units[u, START], units[u, STOP]
        for i in range(d):
            first, second = 0.0, 0.0
            for p in range(start, stop):
                value = np.float64(points[g, i, p])
                w = np.float64(weights[g, p]) if weights.shape[0] > 0 else 1.0
                first += w * value
                second += w * value * value
            out[slot, i] += first
            out[slot, d + i] += second
        for p in range(start, stop):
            out[slot, 2 * d] += np.float64(weights[g, p]) if weights.shape[0] > 0 else 1.0
    return 0
