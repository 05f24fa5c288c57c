"""How a job is run: device, seed, progress and results to reuse, for every verb and adapter.

Progress is data: the engine calls back and never prints.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[str, float, float], None]
"""Callback ``progress(what, done, total)``; ``done`` and ``total`` share one unit of work."""


def silent(what: str, done: float, total: float) -> None:
    """The progress callback that ignores everything."""


Stream = Callable[[int, str, str], None]
"""Callback ``stream(number, model, piece)``: the next piece of a text while it is generated.

``model`` is the source of the model that writes it, or empty where only one is sampled.
"""


class Reuse:
    """Slow results that later steps of the same job need again, such as text the model writes.

    Planning, compressing and calibrating look at the same data in turn.
    """

    def __init__(self) -> None:
        """A store without results."""
        self._results: dict[str, tuple[Hashable, object]] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """The result of ``make()``, reused where the last call for the same kind had an equal key.

        Args:
            kind: what the result is; one result of each kind is kept.
            key: everything that the result depends on.
            make: the slow function; when it raises, nothing is kept.
        """
        if kind not in self._results or self._results[kind][0] != key:
            self._results.pop(kind, None)  # before the next result takes memory
            self._results[kind] = (key, make())
        result: T = self._results[kind][1]  # type: ignore[assignment]  # made for the same kind
        return result


@dataclass(frozen=True, kw_only=True)
class Run:
    """Device, seed, progress and shared results of a job, the same for every adapter and verb.

    Attributes:
        device: torch device name, ``auto`` picks CUDA where there is one.
        seed: the only source of randomness.
        progress: called as work goes on.
        stream: called with texts as they are generated; None where nobody reads along.
        reuse: results that the steps of one job share.
    """

    device: str = "auto"
    seed: int = 0
    progress: Progress = silent
    stream: Stream | None = None
    reuse: Reuse = field(default_factory=Reuse, compare=False, repr=False)
