"""Compiled sweeps over the columns of a layer with paths through a trellis (numba).

Error feedback and coordinate descent as in ``sweep_jit``, but the rows of a tile are decided
together: a path runs over them (docs/algorithms.md#trellis).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dpq_core.kernels.cpu.sweep_jit import add_products, jit, metric_times
from dpq_core.kernels.cpu.trellis_path import bend, book_of, path, scratch
from dpq_core.trellis_books import RESTART


@jit
def feed_back(
    first_tile: int,
    last_tile: int,
    columns: Any,
    lower: Any,
    metrics: Any,
    books: Any,
    rates: Any,
    scales: Any,
    weights: Any,
    codes: Any,
    residual: Any,
    errors: Any,
) -> None:
    """Error feedback ``T_j = W_j + (W - W_hat)_{>j} L_{>j,j}`` with paths, over some tiles of rows.

    Args:
        first_tile: first tile of ``RESTART`` rows.
        last_tile: one past the last.
        columns: float32 W^T ``[n, m]``, m a multiple of ``RESTART``.
        lower: float32 L ``[n, n]``, unit block lower triangular.
        metrics: float32 D ``[steps, 2, 2]``.
        books: see ``trellis_books.by_coordinate``.
        rates: int64 ``[steps]``.
        scales: float32 ``[steps]``, multiplied onto the codewords of each step, not zero.
        weights: float32 ``[m]``, zero for rows that do not exist.
        codes: int32 ``[steps, m]``, written.
        residual: float32 (W - W_hat)^T ``[n, m]``, written.
        errors: float64 ``[m]``, written: the error of each row.
    """
    n, steps = len(columns), len(metrics)
    memory = scratch(books[1].shape[2])
    fed = np.empty((n, RESTART), np.float32)
    target = np.empty((2, RESTART), np.float32)
    point = np.empty((2, RESTART), np.float32)
    wrong = np.empty((2, RESTART), np.float32)
    windows = np.zeros(RESTART, np.int32)
    for tile in range(first_tile, last_tile):
        at = tile * RESTART
        fed[:, :] = np.float32(0)
        errors[at : at + RESTART] = 0.0
        for j in range(steps - 1, -1, -1):
            first, rate, scale = 2 * j, rates[j], scales[j]
            for e in range(2):
                for r in range(RESTART):
                    target[e, r] = columns[first + e, at + r] + fed[first + e, r]
                    wrong[e, r] = target[e, r] / scale
            book = book_of(books, rate)
            offsets = memory[5][: book.shape[1]]
            windows[:] = 0
            if rate > 0:
                bend(book, metrics[j], offsets)
                metric_times(metrics[j], wrong, point)
                row_weights = weights[at : at + RESTART]
                path(point, RESTART, row_weights, book, offsets, rate, memory, windows)
            for r in range(RESTART):
                codes[j, at + r] = windows[r]
                for e in range(2):
                    word = scale * book[e, windows[r]]
                    wrong[e, r] = columns[first + e, at + r] - word
                    residual[first + e, at + r] = wrong[e, r]
                    target[e, r] -= word
            metric_times(metrics[j], target, point)
            for r in range(RESTART):
                errors[at + r] += target[0, r] * point[0, r] + target[1, r] * point[1, r]
            add_products(lower, first, wrong, np.float32(1), fed)


@jit
def descend(
    first_tile: int,
    last_tile: int,
    gradients: Any,
    matrix: Any,
    metrics: Any,
    books: Any,
    rates: Any,
    scales: Any,
    weights: Any,
    codes: Any,
    residual: Any,
    gains: Any,
) -> None:
    """Coordinate descent: the path of each group chosen anew while all others stand still.

    Args:
        first_tile: first tile of ``RESTART`` rows.
        last_tile: one past the last.
        gradients: float32 ((W - W_hat) H)^T ``[n, m]`` before the sweep.
        matrix: float32 H ``[n, n]``.
        metrics: float32 blocks H_jj ``[steps, 2, 2]``.
        books: see ``trellis_books.by_coordinate``.
        rates: int64 ``[steps]``.
        scales: float32 ``[steps]``, multiplied onto the codewords of each step, not zero.
        weights: float32 ``[m]``, zero for rows that do not exist.
        codes: int32 ``[steps, m]``, changed.
        residual: float32 (W - W_hat)^T ``[n, m]``, changed.
        gains: float64 ``[m]``, written: by how much the error of each row fell.
    """
    n, steps = len(gradients), len(metrics)
    memory = scratch(books[1].shape[2])
    gradient = np.empty((n, RESTART), np.float32)
    old = np.empty((2, RESTART), np.float32)
    point = np.empty((2, RESTART), np.float32)
    change = np.empty((2, RESTART), np.float32)
    bent = np.empty((2, RESTART), np.float32)
    windows = np.zeros(RESTART, np.int32)
    gain = np.empty(RESTART, np.float32)
    for tile in range(first_tile, last_tile):
        at = tile * RESTART
        for i in range(n):
            for r in range(RESTART):
                gradient[i, r] = gradients[i, at + r]
        gains[at : at + RESTART] = 0.0
        for j in range(steps - 1, -1, -1):
            first, rate, scale = 2 * j, rates[j], scales[j]
            if rate == 0:
                continue
            book = book_of(books, rate)
            offsets = memory[5][: book.shape[1]]
            for r in range(RESTART):
                old[0, r] = book[0, codes[j, at + r]]
                old[1, r] = book[1, codes[j, at + r]]
            metric_times(metrics[j], old, point)
            for e in range(2):
                for r in range(RESTART):
                    point[e, r] += gradient[first + e, r] / scale
            bend(book, metrics[j], offsets)
            row_weights = weights[at : at + RESTART]
            path(point, RESTART, row_weights, book, offsets, rate, memory, windows)
            for r in range(RESTART):
                change[0, r] = scale * (book[0, windows[r]] - old[0, r])
                change[1, r] = scale * (book[1, windows[r]] - old[1, r])
            metric_times(metrics[j], change, bent)
            total = 0.0
            for r in range(RESTART):
                lost = change[0, r] * bent[0, r] + change[1, r] * bent[1, r]
                linear = change[0, r] * gradient[first, r] + change[1, r] * gradient[first + 1, r]
                gain[r] = np.float32(2) * linear - lost
                total += weights[at + r] * gain[r]
            if total <= 0.0:
                continue  # the old path is as good but for rounding
            for r in range(RESTART):
                codes[j, at + r] = windows[r]
                gains[at + r] += gain[r]
                residual[first, at + r] -= change[0, r]
                residual[first + 1, at + r] -= change[1, r]
            add_products(matrix, first, change, np.float32(-1), gradient)
