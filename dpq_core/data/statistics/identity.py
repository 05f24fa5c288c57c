"""Whether two layers got the same tensor: numbers for tensors, which last while the tensors do."""

from __future__ import annotations

import weakref

from torch import Tensor


class Identities:
    """Gives every tensor a serial number; one that was changed in place counts as another.

    Tensors are told apart by identity, not by value, and are not kept alive.
    """

    def __init__(self) -> None:
        """No tensor known yet."""
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._next = 0

    def serial(self, x: Tensor) -> int:
        """The number of ``x``, the same at every call."""
        version = 0 if x.is_inference() else x._version
        found = self._known.get(id(x))
        if found is not None and found[0]() is x and found[1] == version:
            return found[2]
        self._known = {key: entry for key, entry in self._known.items() if entry[0]() is not None}
        self._known[id(x)] = (weakref.ref(x), version, self._next)
        self._next += 1
        return self._next - 1
