"""The last result of something slow, for whoever asks for the same again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Last(Generic[T]):
    """Remembers one result: planning, compressing and calibrating look at the same data in turn."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._known: tuple[Hashable, T] | None = None

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """``make()``, from memory where the last call had an equal key.

        Args:
            key: all that the result depends on.
            make: the slow function; what it raises is passed on, and nothing is remembered.
        """
        if self._known is None or self._known[0] != key:
            self._known = None  # before the next result takes memory
            self._known = (key, make())
        return self._known[1]
