"""When a loop is too short for a thread pool."""

from __future__ import annotations

_SMALL = 1 << 18
"""Steps (a few hundred microseconds) below which waking threads costs more than it saves.

On a busy machine it costs far more: every parallel region waits for its slowest thread.
"""


def is_small(steps: int) -> bool:
    """Whether a kernel of so many inner steps should stay on the calling thread."""
    return steps < _SMALL
