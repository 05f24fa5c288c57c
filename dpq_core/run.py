"""How a job is run (device, seed, progress): the same for every verb and adapter.

Progress is data: the engine calls back and never prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, float, float], None]
"""Called as ``progress(what, done, total)``; ``done`` and ``total`` share one unit of work."""


def silent(what: str, done: float, total: float) -> None:
    """The progress callback that ignores everything."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a capability is run: the same for every adapter and verb.

    Attributes:
        device: torch device name, ``auto`` picks CUDA where there is one.
        seed: the only source of randomness.
        progress: called as work goes on.
    """

    device: str = "auto"
    seed: int = 0
    progress: Progress = silent
