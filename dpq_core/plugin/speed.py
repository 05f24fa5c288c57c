"""Timing of models: the capability of adapters, and the measurement that they share."""

from __future__ import annotations

import statistics
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dpq_core.plugin.results import Metric

if TYPE_CHECKING:
    from dpq_core.run import Run

_REPEATS = 3
"""Timed calls; their median counts."""


@runtime_checkable
class Times(Protocol):
    """An adapter that times how fast its models generate."""

    @abstractmethod
    def speed(self, source: str, run: Run) -> Metric:
        """Tokens, steps or pictures per second of an artifact or an uncompressed source."""


def per_second(name: str, work: Callable[[], int], what: str, run: Run) -> Metric:
    """The rate of a piece of work: the median of three calls after one that warms up.

    Args:
        name: name of the metric, such as ``tokens/s``.
        work: makes some tokens, steps or pictures, and returns how many when they are done.
        what: what they are, for the protocol.
        run: device and progress.
    """
    import torch

    seconds, count = [], 0
    for i in range(_REPEATS + 1):
        run.progress("time", i, _REPEATS + 1)
        began = time.perf_counter()
        count = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    run.progress("time", _REPEATS + 1, _REPEATS + 1)
    protocol = (
        f"{count} {what}; median of {_REPEATS} after a warm-up, {torch.get_num_threads()} threads"
    )
    rate = count / statistics.median(seconds[1:])
    return Metric(name=name, value=rate, higher_is_better=True, protocol=protocol)
