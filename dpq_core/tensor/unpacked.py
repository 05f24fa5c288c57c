"""Bit-packed parts, unpacked once for as long as they stay the same."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Unpacked:
    """Remembers what became of packed tensors, by name; a changed or moved one is unpacked anew."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._found: dict[str, tuple[Tensor, int, Tensor]] = {}

    def get(self, name: str, packed: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """``make(packed)``, from memory if ``packed`` is the tensor of the last call, unchanged."""
        version = 0 if packed.is_inference() else packed._version
        known = self._found.get(name)
        if known is None or known[0] is not packed or known[1] != version:
            known = self._found[name] = (packed, version, make(packed))
        return known[2]
