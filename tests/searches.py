"""Searches for permutations that end early, where a test needs one and not the best one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def ended_early() -> Iterator[None]:
    """Let searches for permutations try two swaps per column."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpq_core.tensor.basis.selection.SWAPS_PER_COLUMN", 2)
        yield
