"""Threads for compiled loops that release the GIL.

The loops are compiled without numba's own thread pool, whose threads would compete with those of
torch. Between operations of torch they run on torch's own threads, where it works with GNU OpenMP:
those may still spin for more work, and would take processors from any others. Elsewhere, and within
``one_torch_thread``, they run on Python threads that sleep. Results never depend on the number of
threads.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from dpq_core.kernels.cpu import openmp

_SMALL = 1 << 18
"""Inner steps below which waking threads costs more than it saves (some 100 microseconds)."""

_PIECE = 1 << 16
"""Inner steps below which handing out a piece of work costs more than it saves."""

_PIECES = 16
"""Pieces of work per thread, at most.

A thread that another process interrupts delays one of them; the other threads sleep meanwhile,
which leaves it their processors.
"""

_SMALL_OPERATION = 1 << 18
"""Elements up to which an operation of torch is as fast on one thread as on threads that sleep."""


class _Scope(threading.local):
    """Number of threads of compiled loops that this thread calls within ``one_torch_thread``."""

    threads: int | None = None


_scope = _Scope()


@contextlib.contextmanager
def one_torch_thread(elements: int = 0) -> Iterator[None]:
    """Context, or decorator, in which torch works on the calling thread alone.

    Compiled loops keep their number of threads. For loops of many small operations: each would
    wait for sleeping threads to wake, or leave threads that spin beside the compiled loops.

    Args:
        elements: of the largest tensors in the loop; nothing changes where they are not small.
    """
    if _scope.threads is not None or elements > _SMALL_OPERATION:
        yield
        return
    threads = torch.get_num_threads()
    _scope.threads = threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _scope.threads = None


def thread_count(tasks: int, steps: int) -> int:
    """Number of threads worth using for ``tasks`` tasks of ``steps`` inner steps in all."""
    threads = torch.get_num_threads() if _scope.threads is None else _scope.threads
    return 1 if steps < _SMALL else min(threads, tasks)


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
    pieces = min(tasks, _PIECES * threads, max(threads, steps // _PIECE))
    bounds = [piece * tasks // pieces for piece in range(pieces + 1)]
    queue = itertools.count()  # its next() is atomic
    errors: list[BaseException] = []

    def work(_: object = None) -> None:
        try:
            while not errors and (piece := next(queue)) < pieces:
                run(bounds[piece], bounds[piece + 1])
        except BaseException as error:  # no exception may pass through a C frame
            errors.append(error)

    start = openmp.team() if _scope.threads is None else None
    if start is not None:
        start(openmp.TEAM_FUNCTION(work), None, threads, 0)
    else:
        helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
        work()
        for helper in helpers:
            if not helper.cancel():  # one that has not begun has nothing left to do
                helper.result()
    if errors:
        raise errors[0]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool of Python threads, kept because starting threads takes as long as a small layer."""
    return ThreadPoolExecutor(threads, thread_name_prefix="dpq")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
