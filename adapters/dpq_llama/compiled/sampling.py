"""The choice of a token from logits, compiled: temperature, then top-k, then top-p."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def kth_largest(values, k):  # type: ignore[no-untyped-def]
    """The k-th largest of values ``[N]``, 1 <= k <= N, equal values counted each.

    A heap keeps the k largest so far, its smallest first. ``np.partition`` says the same and takes
    seconds to compile.
    """
    heap = np.full(k, -np.inf, values.dtype)
    for value in values:
        if value <= heap[0]:
            continue
        place, child = 0, 1
        while child < k:
            if child + 1 < k and heap[child + 1] < heap[child]:
                child += 1
            if heap[child] >= value:
                break
            heap[place] = heap[child]
            place, child = child, 2 * child + 1
        heap[place] = value
    return heap[0]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def choose(logits, temperature, top_k, top_p, draw):  # type: ignore[no-untyped-def]
    """The id of a token: the likeliest one, or one drawn.

    Args:
        logits: float32 ``[V]``.
        temperature: 0 for the likeliest token, the first of equals.
        top_k: draw from this many tokens (and equals of the last); 0 for all.
        top_p: draw from the likeliest tokens of this total share.
        draw: uniform random number in [0, 1).
    """
    best = np.argmax(logits)
    if temperature == 0:
        return best
    least = -np.inf
    if 0 < top_k < len(logits):
        least = kth_largest(logits, top_k)
    shares = np.empty(len(logits), np.float64)
    total = 0.0
    for n in range(len(logits)):
        fits = logits[n] >= least
        shares[n] = np.exp((float(logits[n]) - logits[best]) / temperature) if fits else 0.0
        total += shares[n]
    if top_p < 1:
        # All tokens below this share have together less than 1 - top_p, so none of them is drawn.
        floor = total * (1 - top_p) / len(logits)
        some = np.nonzero(shares >= floor)[0]
        some = some[np.argsort(-shares[some], kind="mergesort")]
        reached = 0.0
        count = 0
        while count < len(some) and reached < top_p * total:
            reached += shares[some[count]]
            count += 1
        mark = draw * reached
        for n in some[:count]:
            mark -= shares[n]
            if mark < 0:
                return n
        return some[0]
    mark = draw * total
    for n in range(len(logits)):
        mark -= shares[n]
        if mark < 0:
            return n
    return best
