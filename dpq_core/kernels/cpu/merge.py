"""Compiled pairwise merging of weighted vectors inside cells, for pools of codewords."""

from __future__ import annotations

import numba
import numpy as np

_FAST = {"reassoc", "contract", "nnan"}


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
def _closest(y, u, i, alive, costs):  # type: ignore[no-untyped-def]
    """Place and cost of the cheapest partner of cluster i among the first ``alive``."""
    for t in range(alive):
        costs[t] = 0
    for k in range(y.shape[0]):
        for t in range(alive):
            delta = y[k, t] - y[k, i]
            costs[t] += delta * delta
    for t in range(alive):
        costs[t] *= u[t] * u[i] / (u[t] + u[i])
    costs[i] = np.inf
    least = costs[0]
    for t in range(alive):
        least = min(least, costs[t])
    place = 0
    while costs[place] != least:
        place += 1
    return place, least


@numba.njit(cache=True, nogil=True)
def merge_cell(x, w, keep, drop, cost):  # type: ignore[no-untyped-def]
    """Record all merges of one cell down to a single cluster, cheapest pair first.

    Joining weights a and b at a distance r adds ``a b / (a + b) r^2`` to the squared error. Each
    cluster remembers its cheapest partner; a merge can spoil this only for those whose partner
    was one of the two, since the union is never cheaper for a third than the cheaper of both.

    Args:
        x: float32 [n, d].
        w: float32 [n], positive.
        keep: int32 [n - 1], the member that each merge goes on under.
        drop: int32 [n - 1], the member that it swallows.
        cost: float32 [n - 1], error that each merge adds; ascending.
    """
    n = len(x)
    y, u = np.ascontiguousarray(x.T), w.copy()
    name = np.arange(n)
    costs, least_cost = np.empty(n, np.float32), np.empty(n, np.float32)
    partner = np.empty(n, np.int64)
    for i in range(n):
        partner[i], least_cost[i] = _closest(y, u, i, n, costs)
    for step in range(n - 1):
        alive = n - step
        i = int(np.argmin(least_cost[:alive]))
        j = partner[i]
        if j < i:
            i, j = j, i
        keep[step], drop[step] = name[i], name[j]
        cost[step] = least_cost[i] if step == 0 else max(cost[step - 1], least_cost[i])
        share = u[j] / (u[i] + u[j])
        for k in range(y.shape[0]):
            y[k, i] += share * (y[k, j] - y[k, i])
        u[i] += u[j]
        last = alive - 1  # moves to the place that j leaves
        for t in range(alive):
            if partner[t] == i or partner[t] == j:
                partner[t] = -1
            elif partner[t] == last:
                partner[t] = j
        partner[i] = -1
        u[j], name[j] = u[last], name[last]
        partner[j], least_cost[j] = partner[last], least_cost[last]
        for k in range(y.shape[0]):
            y[k, j] = y[k, last]
        for t in range(last):
            if partner[t] < 0 and last > 1:
                partner[t], least_cost[t] = _closest(y, u, t, last, costs)


@numba.njit(cache=True, nogil=True)
def merge_cells(x, w, run, keep, drop, cost, first, last):  # type: ignore[no-untyped-def]
    """Run ``merge_cell`` on cells first..last, runs of ``run`` members; places count from 0.

    The merges of a cell that begins at member s are written from s on; the entry before the next
    cell stays unwritten.
    """
    for cell in range(first, last):
        s, e = cell * run, min(len(x), (cell + 1) * run)
        merge_cell(x[s:e], w[s:e], keep[s : e - 1], drop[s : e - 1], cost[s : e - 1])
        keep[s : e - 1] += s
        drop[s : e - 1] += s


@numba.njit(cache=True, nogil=True)
def apply(x, w, keep, drop, chosen, into):  # type: ignore[no-untyped-def]
    """Carry out the chosen merges in order, in place.

    Args:
        x: float32 [n, d]; a survivor becomes the weighted mean of its cluster.
        w: float32 [n]; a survivor becomes the sum.
        keep: int32 [n], see ``merge_cells``.
        drop: int32 [n], see ``merge_cells``.
        chosen: bool [n].
        into: int64 [n], each its own place before, the survivor of its cluster after.
    """
    for m in range(len(chosen)):
        if chosen[m]:
            i, j = keep[m], drop[m]
            share = w[j] / (w[i] + w[j])
            for k in range(x.shape[1]):
                x[i, k] += share * (x[j, k] - x[i, k])
            w[i] += w[j]
            into[j] = i
    for m in range(len(into)):
        root = m
        while into[root] != root:
            root = into[root]
        into[m] = root
