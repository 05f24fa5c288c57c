"""Compiled searches for paths through a trellis (numba); see docs/algorithms.md#trellis.

A path is the sequence of the K-bit windows of one group's bit stream, point by point. Tiles of
``RESTART`` rows are independent of each other: every stream starts anew there. Within a tile the
rows of one column group are decided together by the Viterbi algorithm, all codewords of a row in
the lanes of vector registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dpq_core.kernels.cpu.sweep_jit import jit
from dpq_core.trellis_books import LOW_RATES, RESTART

_VECTOR = 16  # states that are compared at once, at least


@jit
def book_of(books: Any, rate: int) -> Any:
    """The codebook ``[2, K]`` of a rate, among those of ``trellis_books.by_coordinate``."""
    low, high = books
    return low[rate] if rate <= LOW_RATES else high[rate - LOW_RATES - 1]


@jit
def scratch(K: int) -> Any:
    """Memory of searches with K codewords at most.

    Scores, costs, best scores, best rows, the way back, and room for offsets of codewords.
    """
    wide = max(K // 2, _VECTOR)
    return (
        np.empty(K, np.float32),
        np.empty(wide, np.float32),
        np.empty(wide, np.float32),
        np.empty(wide, np.int32),
        np.empty((RESTART, wide), np.int16),
        np.empty(K, np.float32),
    )


@jit
def path(
    points: Any,
    count: int,
    weights: Any,
    words: Any,
    offsets: Any,
    rate: int,
    memory: Any,
    windows: Any,
) -> None:
    """Write the windows of the path with the least weighted sum of scores.

    The score of codeword k at row r is ``weights[r] (offsets[k] - 2 points[:, r] . words[:, k])``.

    Args:
        points: float32 ``[2, RESTART]``.
        count: rows that exist, 1 to RESTART.
        weights: float32 ``[RESTART]``.
        words: float32 ``[2, K]``.
        offsets: float32 ``[K]``.
        rate: bits of a code, 1 to 12.
        memory: see ``scratch``.
        windows: int32 ``[RESTART]``, written.
    """
    scores, costs, best, rows, back = memory[:5]
    K = len(offsets)
    codes = 1 << rate
    states = K >> rate  # the bits of a window but the newest code
    wide = max(states, _VECTOR)
    for s in range(states):
        costs[s] = np.float32(1e30)
    costs[0] = np.float32(0)
    first, second = words[0], words[1]
    for r in range(count):
        weight = weights[r]
        a = np.float32(-2) * weight * points[0, r]
        b = np.float32(-2) * weight * points[1, r]
        for k in range(K):
            scores[k] = weight * offsets[k] + a * first[k] + b * second[k]
        for s in range(states):
            cost, some = costs[s], scores[s * codes : (s + 1) * codes]
            for c in range(codes):
                some[c] += cost
        for i in range(wide):
            best[i] = scores[i]
            rows[i] = 0
        for row in range(1, K // wide):
            some = scores[row * wide : (row + 1) * wide]
            for i in range(wide):
                less = some[i] < best[i]
                best[i] = some[i] if less else best[i]
                rows[i] = row if less else rows[i]
        for s in range(states):  # window = row * wide + i; its state is the low bits
            i = s
            for other in range(s + states, wide, states):
                if best[other] < best[i]:
                    i = other
            costs[s] = best[i]
            back[r, s] = rows[i] * wide + i
    state = 0
    for s in range(1, states):
        if costs[s] < costs[state]:
            state = s
    for r in range(count - 1, -1, -1):
        window = int(back[r, state])
        windows[r] = window
        state = window >> rate


@jit
def bend(words: Any, metric: Any, offsets: Any) -> None:
    """Write ``offsets[k] = c_k^T M c_k`` for words c ``[2, K]`` and a metric M ``[2, 2]``."""
    a, b, c = metric[0, 0], metric[0, 1] + metric[1, 0], metric[1, 1]
    for k in range(len(offsets)):
        x, y = words[0, k], words[1, k]
        offsets[k] = a * x * x + b * x * y + c * y * y


@jit
def nearest(
    first_tile: int,
    last_tile: int,
    subvectors: Any,
    weights: Any,
    books: Any,
    rates: Any,
    codes: Any,
) -> None:
    """Windows of the nearest paths, for tiles first..last of every group.

    Args:
        first_tile: first tile of ``RESTART`` points.
        last_tile: one past the last.
        subvectors: float32 ``[G, 2, P]``.
        weights: float32 ``[P]``.
        books: see ``trellis_books.by_coordinate``.
        rates: int64 ``[G]``.
        codes: int32 ``[G, P]``, written.
    """
    groups, _, count = subvectors.shape
    memory = scratch(books[1].shape[2])
    point = np.empty((2, RESTART), np.float32)
    weight = np.empty(RESTART, np.float32)
    windows = np.empty(RESTART, np.int32)
    identity = np.eye(2).astype(np.float32)
    for g in range(groups):
        rate = rates[g]
        if rate == 0:
            codes[g, first_tile * RESTART : last_tile * RESTART] = 0
            continue
        book = book_of(books, rate)
        offsets = memory[5][: book.shape[1]]
        bend(book, identity, offsets)
        for tile in range(first_tile, last_tile):
            at = tile * RESTART
            rows = min(RESTART, count - at)
            for r in range(rows):
                point[0, r] = subvectors[g, 0, at + r]
                point[1, r] = subvectors[g, 1, at + r]
                weight[r] = weights[at + r]
            path(point, rows, weight, book, offsets, rate, memory, windows)
            for r in range(rows):
                codes[g, at + r] = windows[r]
