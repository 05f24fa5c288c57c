"""Compiled sweeps over the columns of a layer: error feedback and coordinate descent (numba).

Tiles of ``LANES`` rows of the layer are decided together, column group after column group from the
last to the first: rows do not depend on each other, so that the compiler puts a row in each lane of
a vector register. See docs/algorithms.md#assignment, #assign-ldlq.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
jit = cast(Callable[[F], F], numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"}))

LANES = 64  # rows of a tile: four registers of AVX-512


@jit
def _lowest(points: Any, words: Any, offsets: Any, best: Any, codes: Any) -> None:
    """Code k with the lowest ``offset_k - 2 point . word_k`` for every lane.

    points ``[d, LANES]``, words ``[K, d]``, offsets ``[K]``; writes best and codes ``[LANES]``.
    """
    d = points.shape[0]
    best[:] = np.float32(np.inf)
    codes[:] = 0
    for k in range(words.shape[0]):
        offset = offsets[k]
        a = np.float32(2) * words[k, 0]
        b = np.float32(2) * words[k, 1] if d > 1 else np.float32(0)
        c = np.float32(2) * words[k, 2] if d > 2 else np.float32(0)
        e = np.float32(2) * words[k, 3] if d > 3 else np.float32(0)
        if d == 1:
            for r in range(LANES):
                score = offset - a * points[0, r]
                less = score < best[r]
                best[r] = score if less else best[r]
                codes[r] = k if less else codes[r]
        elif d == 2:
            for r in range(LANES):
                score = offset - a * points[0, r] - b * points[1, r]
                less = score < best[r]
                best[r] = score if less else best[r]
                codes[r] = k if less else codes[r]
        elif d <= 4:
            last = 3 if d == 4 else 2
            for r in range(LANES):
                score = offset - a * points[0, r] - b * points[1, r] - c * points[2, r]
                score -= e * points[last, r]
                less = score < best[r]
                best[r] = score if less else best[r]
                codes[r] = k if less else codes[r]
        else:
            f = np.float32(2) * words[k, 4]
            g = np.float32(2) * words[k, 5] if d > 5 else np.float32(0)
            h = np.float32(2) * words[k, 6] if d > 6 else np.float32(0)
            i = np.float32(2) * words[k, 7] if d > 7 else np.float32(0)
            five, six, seven = min(5, d - 1), min(6, d - 1), min(7, d - 1)
            for r in range(LANES):
                score = offset - a * points[0, r] - b * points[1, r] - c * points[2, r]
                score -= e * points[3, r] + f * points[4, r] + g * points[five, r]
                score -= h * points[six, r] + i * points[seven, r]
                less = score < best[r]
                best[r] = score if less else best[r]
                codes[r] = k if less else codes[r]


@jit
def add_products(matrix: Any, first: int, values: Any, sign: Any, sums: Any) -> None:
    """sums[i] += sign * sum_e matrix[first + e, i] * values[e], for all i below ``first``.

    matrix ``[n, n]``, values ``[d, m]``, sums ``[n, m]``.
    """
    d, lanes = values.shape
    e = 0
    while e < d:
        if e + 4 <= d:
            for i in range(first):
                a = sign * matrix[first + e, i]
                b = sign * matrix[first + e + 1, i]
                c = sign * matrix[first + e + 2, i]
                f = sign * matrix[first + e + 3, i]
                for r in range(lanes):
                    sums[i, r] += (
                        a * values[e, r]
                        + b * values[e + 1, r]
                        + c * values[e + 2, r]
                        + f * values[e + 3, r]
                    )
            e += 4
        else:
            for i in range(first):
                a = sign * matrix[first + e, i]
                for r in range(lanes):
                    sums[i, r] += a * values[e, r]
            e += 1


@jit
def metric_times(metric: Any, values: Any, products: Any) -> None:
    """Products = metric @ values: ``[d, d] @ [d, m]``."""
    d, lanes = values.shape
    for e in range(d):
        products[e, :] = np.float32(0)
        for f in range(d):
            m = metric[e, f]
            for r in range(lanes):
                products[e, r] += m * values[f, r]


@jit
def feed_back(
    first_tile: int,
    last_tile: int,
    columns: Any,
    lower: Any,
    metrics: Any,
    words: Any,
    offsets: Any,
    book_of: Any,
    codes: Any,
    residual: Any,
    errors: Any,
) -> None:
    """Error feedback ``T_j = W_j + (W - W_hat)_{>j} L_{>j,j}`` over some tiles of rows.

    Args:
        first_tile: first tile of ``LANES`` rows.
        last_tile: one past the last.
        columns: float32 W^T ``[n, m]``, m a multiple of ``LANES``.
        lower: float32 L ``[n, n]``, unit block lower triangular.
        metrics: float32 D ``[steps, d, d]``.
        words: float32 codebooks ``[B, K, d]``.
        offsets: float32 ``c^T D_j c`` ``[steps, K]`` of the step's codebook.
        book_of: int64 ``[steps]``, the codebook of each step.
        codes: int32 ``[steps, m]``, written.
        residual: float32 (W - W_hat)^T ``[n, m]``, written.
        errors: float64 ``[m]``, written: the error of each row.
    """
    n, (steps, d) = len(columns), metrics.shape[:2]
    fed = np.empty((n, LANES), np.float32)
    target = np.empty((d, LANES), np.float32)
    point = np.empty((d, LANES), np.float32)
    wrong = np.empty((d, LANES), np.float32)
    best = np.empty(LANES, np.float32)
    code = np.empty(LANES, np.int32)
    for tile in range(first_tile, last_tile):
        at = tile * LANES
        fed[:, :] = np.float32(0)
        errors[at : at + LANES] = 0.0
        for j in range(steps - 1, -1, -1):
            first = j * d
            for e in range(d):
                for r in range(LANES):
                    target[e, r] = columns[first + e, at + r] + fed[first + e, r]
            metric_times(metrics[j], target, point)
            book = words[book_of[j]]
            _lowest(point, book, offsets[j], best, code)
            for r in range(LANES):
                codes[j, at + r] = code[r]
            for e in range(d):
                for r in range(LANES):
                    word = book[code[r], e]
                    wrong[e, r] = columns[first + e, at + r] - word
                    target[e, r] -= word
                    residual[first + e, at + r] = wrong[e, r]
            metric_times(metrics[j], target, point)
            for e in range(d):
                for r in range(LANES):
                    errors[at + r] += target[e, r] * point[e, r]
            add_products(lower, first, wrong, np.float32(1), fed)


@jit
def descend(
    first_tile: int,
    last_tile: int,
    gradients: Any,
    matrix: Any,
    metrics: Any,
    words: Any,
    offsets: Any,
    book_of: Any,
    allowed: Any,
    noise: Any,
    codes: Any,
    residual: Any,
    gains: Any,
) -> None:
    """Coordinate descent: every code chosen anew while all others stand still, over some tiles.

    Args:
        first_tile: first tile of ``LANES`` rows.
        last_tile: one past the last.
        gradients: float32 ((W - W_hat) H)^T ``[n, m]`` before the sweep.
        matrix: float32 H ``[n, n]``.
        metrics: float32 blocks H_jj ``[steps, d, d]``.
        words: float32 codebooks ``[B, K, d]``.
        offsets: float32 ``c^T H_jj c`` ``[steps, K]`` of the step's codebook.
        book_of: int64 ``[steps]``, the codebook of each step.
        allowed: bool ``[steps, m]``, codes that may change; ``[0, 0]``: all.
        noise: gains below this share of their terms may be rounding.
        codes: int32 ``[steps, m]``, changed.
        residual: float32 (W - W_hat)^T ``[n, m]``, changed.
        gains: float64 ``[m]``, written: by how much the error of each row fell.
    """
    n, (steps, d) = len(gradients), metrics.shape[:2]
    gradient = np.empty((n, LANES), np.float32)
    old = np.empty((d, LANES), np.float32)
    point = np.empty((d, LANES), np.float32)
    change = np.empty((d, LANES), np.float32)
    bent = np.empty((d, LANES), np.float32)
    best = np.empty(LANES, np.float32)
    code = np.empty(LANES, np.int32)
    gain = np.empty(LANES, np.float32)
    size = np.empty(LANES, np.float32)
    for tile in range(first_tile, last_tile):
        at = tile * LANES
        for i in range(n):
            for r in range(LANES):
                gradient[i, r] = gradients[i, at + r]
        gains[at : at + LANES] = 0.0
        for j in range(steps - 1, -1, -1):
            first = j * d
            book = words[book_of[j]]
            for e in range(d):
                for r in range(LANES):
                    old[e, r] = book[codes[j, at + r], e]
            metric_times(metrics[j], old, point)
            for e in range(d):
                for r in range(LANES):
                    point[e, r] += gradient[first + e, r]
            _lowest(point, book, offsets[j], best, code)
            for e in range(d):
                for r in range(LANES):
                    change[e, r] = book[code[r], e] - old[e, r]
            metric_times(metrics[j], change, bent)
            gain[:] = np.float32(0)
            size[:] = np.float32(0)
            for e in range(d):
                for r in range(LANES):
                    linear = np.float32(2) * change[e, r] * gradient[first + e, r]
                    square = change[e, r] * bent[e, r]
                    gain[r] += linear - square
                    size[r] += abs(linear) + abs(square)
            moved = 0
            for r in range(LANES):
                take = code[r] != codes[j, at + r] and gain[r] > noise * size[r]
                if allowed.size:
                    take = take and allowed[j, at + r]
                if take:
                    codes[j, at + r] = code[r]
                    gains[at + r] += gain[r]
                    moved += 1
                else:
                    for e in range(d):
                        change[e, r] = np.float32(0)
            if moved:
                for e in range(d):
                    for r in range(LANES):
                        residual[first + e, at + r] -= change[e, r]
                add_products(matrix, first, change, np.float32(-1), gradient)
