"""Progress of long work as data: the CLI draws it, the engine never prints."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called as ``progress(what, done, total)``; ``done`` and ``total`` share one unit of work."""


def silent(what: str, done: float, total: float) -> None:
    """The progress callback that ignores everything."""
