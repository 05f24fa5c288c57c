"""Runs compiled loops on threads, when that pays.

The kernels are compiled without numba's own thread pool: beside torch's pool its threads spin while
they wait, which on a busy machine multiplied the time of a forward pass. Python threads sleep
instead, and the kernels release the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_SMALL = 1 << 18
"""Inner steps (a few hundred microseconds) below which waking threads costs more than it saves."""

_PIECES = 4
"""Pieces of work per thread, so that a slow thread is not waited for."""


def thread_count(tasks: int, steps: int) -> int:
    """Threads worth using for ``tasks`` pieces of together ``steps`` inner steps."""
    return 1 if steps < _SMALL else min(torch.get_num_threads(), tasks)


def spread(run: Callable[[int, int], object], tasks: int, steps: int) -> None:
    """Call ``run(first, last)`` over consecutive ranges that cover ``0..tasks``.

    Args:
        run: releases the GIL and writes to places that no other range writes to.
        tasks: number of independent tasks.
        steps: inner steps of all tasks together.
    """
    threads = thread_count(tasks, steps)
    if threads < 2:
        run(0, tasks)
        return
    pieces = min(tasks, _PIECES * threads)
    bounds = [piece * tasks // pieces for piece in range(pieces + 1)]
    with ThreadPoolExecutor(threads) as pool:  # of this call: a lasting pool survives no fork
        list(pool.map(run, bounds[:-1], bounds[1:]))
