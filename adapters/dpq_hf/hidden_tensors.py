"""A conversion of transformers that hides tensors from its loader."""

from __future__ import annotations

# Only modules that need transformers import this one: TID253.
from collections.abc import Iterable

from transformers.core_model_loading import WeightRenaming  # noqa: TID253


class HiddenTensors(WeightRenaming):
    """Renames tensors to a name that no model has, so that they count as unexpected.

    It never counts as used, so that saving does not try to undo it.
    """

    __slots__ = ("_keys", "_name")

    def __init__(self, keys: Iterable[str], name: str) -> None:
        """Hide the tensors called ``keys`` under one name."""
        super().__init__(name, name)
        self._keys, self._name = frozenset(keys), name

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """The name under which a tensor is hidden, or its own."""
        return (self._name if source_key in self._keys else source_key), None
