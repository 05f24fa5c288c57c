"""The OpenMP threads of torch: used for compiled loops, and kept from spinning for long.

A thread of GNU OpenMP that waits, for its next work or for the last of its team, first spins
300,000 times, which takes milliseconds, and only then sleeps. Spinning threads take the processor
from threads that work: beside one other busy process, compressing a model took almost three times
as long as alone, and half of its CPU time was spent waiting. The environment variables for this
(``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``) are read when torch is loaded, too early for a library.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

TEAM_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""Type of the function that every thread of a team calls with the team's pointer."""


@functools.cache
def team() -> Callable[..., Any] | None:
    """The function ``GOMP_parallel`` of torch's OpenMP library; None where that is not GNU's.

    Its arguments are ``(function, pointer, threads, flags)``.
    """
    return getattr(_library(), "GOMP_parallel", None)


@contextlib.contextmanager
def short_spins() -> Iterator[None]:
    """Context or decorator in which waiting threads of torch sleep almost at once.

    It holds for the whole process, may be nested and entered by several threads, and ends with the
    last of them. For whole jobs: waking a sleeping thread takes up to 200 microseconds, so that a
    loop of small operations is better run in ``threads.one_torch_thread`` within it. It changes
    nothing where torch works with another OpenMP than GNU's.
    """
    _spare_team.enter()
    try:
        yield
    finally:
        _spare_team.leave()


class _SpareTeam:
    """A team of sleeping threads, one more than there are processors, while it has users.

    GNU OpenMP spins 100 times instead of 300,000 while it manages more threads than processors
    (its manual, GOMP_SPINCOUNT); no call sets that number.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self) -> None:
        """Start the team for the first user."""
        with self._lock:
            self._users += 1
            start = team()
            if self._users == 1 and start is not None:
                started = threading.Event()
                self._ended = threading.Event()
                self._thread = threading.Thread(
                    target=self._hold, args=(start, started), name="dpq-spare-team", daemon=True
                )
                self._thread.start()
                started.wait()

    def leave(self) -> None:
        """End the team after the last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._thread is not None:
                self._ended.set()
                self._thread.join()
                self._thread = None

    def _hold(self, start: Callable[..., Any], started: threading.Event) -> None:
        """Hold the team until it is to end."""
        nothing = TEAM_FUNCTION(lambda _: None)
        start(nothing, None, _processors() + 1, 0)
        started.set()
        self._ended.wait()  # the team sleeps in OpenMP, and ends with this thread


_spare_team = _SpareTeam()


def _processors() -> int:
    """Number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch brings; None where it has another."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        return ctypes.CDLL(str(path))
    return None
