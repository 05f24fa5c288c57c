"""What is said of an unknown name: the nearest ones, or all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, most: int = 2, cutoff: float = 0.6) -> str:
    """``did you mean a or b? ``, with a space at the end; empty where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}? " if near else ""
