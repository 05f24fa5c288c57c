"""The file that a source names: a path, or ``builtin:NAME`` for a scene that ships."""

from __future__ import annotations

from pathlib import Path

from dpq_core.errors import SourceError
from dpq_core.plugin.builtin import BUILTIN_SCHEME, find_local

BUILTIN = Path(__file__).parents[1] / "builtin"
"""Scenes that ship, each a folder with this file in it:"""

BUILTIN_FILE = "scene.ply"


def locate(source: str) -> Path:
    """The file that a source names.

    Raises:
        SourceError: there is none.
    """
    place = find_local(source, BUILTIN, BUILTIN_FILE)
    if place is None:
        raise SourceError(f"{source}: no such file")
    return place / BUILTIN_FILE if source.startswith(BUILTIN_SCHEME) else place
