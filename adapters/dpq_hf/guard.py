"""Makes a library that does not know dpq refuse an artifact, where it would only warn.

Some libraries skip a quantization that they do not know and return random weights. But an
activation function that they do not know is an error on every way to a model; its name, which the
error shows, is free text. So artifacts write the name with a mark, and who imports the adapter
enters the marked names in the library's table of activations.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

_OPENS = " (dpq artifact: "


class Guard:
    """The mark of one adapter; it says what to import. Never change it: artifacts carry it."""

    def __init__(self, package: str) -> None:
        self._mark = f"{_OPENS}import {package} first)"

    def marked(self, activation: str) -> str:
        """The activation's name as artifacts write it."""
        return activation if activation.endswith(self._mark) else activation + self._mark

    def unmarked(self, activation: str) -> str:
        """The inverse of ``marked``: the name that the library knows."""
        return activation.removesuffix(self._mark)

    def enter(self, table: MutableMapping[str, Any]) -> None:
        """Let every activation of a library's table be known by its marked name too."""
        for name, function in list(table.items()):
            if _OPENS not in name:
                table[self.marked(name)] = function
