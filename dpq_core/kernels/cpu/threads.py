"""Runs compiled loops on threads, when that pays.

The kernels are compiled without numba's own thread pool: beside torch's pool its threads spin while
they wait, which on a busy machine multiplied the time of a forward pass. Where torch works with
GNU OpenMP they run on torch's own threads, which between two operations spin for more work and
would be in the way of any others; elsewhere on Python threads that sleep. The kernels release the
GIL.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_SMALL = 1 << 18
"""Inner steps (a few hundred microseconds) below which waking threads costs more than it saves."""

_PIECES = 4
"""Pieces of work per thread, so that a slow thread is not waited for."""

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def thread_count(tasks: int, steps: int) -> int:
    """Threads worth using for ``tasks`` pieces of together ``steps`` inner steps."""
    return 1 if steps < _SMALL else min(torch.get_num_threads(), tasks)


def spread(run: Callable[[int, int], object], tasks: int, steps: int) -> None:
    """Call ``run(first, last)`` over consecutive ranges that cover ``0..tasks``.

    The calling thread works too; whoever is free takes the next range.

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
    queue = itertools.count()  # its next() is atomic
    errors: list[BaseException] = []

    def work(_: object = None) -> None:
        try:
            while not errors and (piece := next(queue)) < pieces:
                run(bounds[piece], bounds[piece + 1])
        except BaseException as error:  # no exception may pass through a C frame
            errors.append(error)

    start = _team()
    if start is None:
        helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
        work()
        for helper in helpers:
            helper.result()
    else:
        start(_Task(work), None, threads, 0)
    if errors:
        raise errors[0]


@functools.cache
def _team() -> Callable[..., Any] | None:
    """``GOMP_parallel`` of the library that torch itself uses; None where it uses another."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        return getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
    return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, because starting threads takes as long as a small layer."""
    return ThreadPoolExecutor(threads, thread_name_prefix="dpq")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
