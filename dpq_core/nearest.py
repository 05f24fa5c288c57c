"""Suggestions for an unknown name: the known names that are nearest to it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, most: int = 2, cutoff: float = 0.6) -> str:
    """The question ``did you mean a or b? ``, space included; empty where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}? " if near else ""
