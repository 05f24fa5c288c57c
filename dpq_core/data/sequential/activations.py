"""Activations: the arguments of a block for every batch, in memory up to a budget, then on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpq_core.artifact.files import writing
from dpq_core.tensor.checkpoint import DTYPES

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
_SPILLED = frozenset(DTYPES.values())


class Unstorable(Exception):  # noqa: N818 - not a mistake of the user: the caller runs the prefix
    """The arguments of a block cannot be stored, or a batch never reaches the block."""


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor in a structure of arguments."""

    index: int


@dataclass
class _Stored:
    """The arguments of one batch; ``tensors`` is None while they are on disk."""

    structure: Any
    tensors: list[Tensor] | None
    devices: list[torch.device]
    nbytes: int


def flatten(value: Any, tensors: list[Tensor]) -> Any:
    """Collect the tensors of nested tuples, lists and dicts in a list, each of them once.

    Returns:
        The structure, with a slot for every tensor.

    Raises:
        Unstorable: it holds something else, which may have a state (a cache, say).
    """
    if isinstance(value, Tensor):
        index = next((i for i, tensor in enumerate(tensors) if tensor is value), len(tensors))
        if index == len(tensors):
            tensors.append(value)
        return _Slot(index)
    if type(value) in (tuple, list):
        return type(value)(flatten(item, tensors) for item in value)
    if type(value) is dict:
        return {key: flatten(item, tensors) for key, item in value.items()}
    if isinstance(value, _PLAIN):
        return value
    raise Unstorable(type(value).__name__)


def unflatten(structure: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse of ``flatten``."""
    if isinstance(structure, _Slot):
        return tensors[structure.index]
    if type(structure) in (tuple, list):
        return type(structure)(unflatten(item, tensors) for item in structure)
    if type(structure) is dict:
        return {key: unflatten(item, tensors) for key, item in structure.items()}
    return structure


class Activations:
    """The arguments of a block by batch number, kept in memory up to a budget and then on disk.

    Attributes:
        nbytes: bytes of the tensors in memory.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        """Start with nothing stored.

        Args:
            folder: where tensors beyond the budget go; made when it is needed.
            budget: largest number of bytes in memory.
        """
        self.nbytes = 0
        self._folder, self._budget = folder, budget
        self._stored: dict[int, _Stored] = {}

    @property
    def room(self) -> int:
        """Bytes that are left of the budget."""
        return max(0, self._budget - self.nbytes)

    def put(self, index: int, arguments: Any) -> None:
        """Store or replace the arguments of one batch.

        Raises:
            Unstorable: they are not tensors and plain values.
            ArtifactError: the disk refused.
        """
        tensors: list[Tensor] = []
        structure = flatten(arguments, tensors)
        devices = [tensor.device for tensor in tensors]
        tensors = [tensor.detach().to("cpu") for tensor in tensors]
        self.drop(index)
        nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        fits = self.nbytes + nbytes <= self._budget
        if not fits and all(tensor.dtype in _SPILLED for tensor in tensors):
            self._spill(index, tensors)
            self._stored[index] = _Stored(structure, None, devices, 0)
        else:
            self._stored[index] = _Stored(structure, tensors, devices, nbytes)
            self.nbytes += nbytes

    def get(self, index: int) -> Any:
        """The arguments of one batch, on their devices; they must not be changed in place."""
        stored = self._stored[index]
        tensors = stored.tensors
        if tensors is None:
            named = load_file(self._file(index))
            tensors = [named[str(i)] for i in range(len(named))]
        there = zip(tensors, stored.devices, strict=True)
        return unflatten(stored.structure, [tensor.to(device) for tensor, device in there])

    def drop(self, index: int) -> None:
        """Forget one batch, if it is there."""
        stored = self._stored.pop(index, None)
        if stored is None:
            return
        self.nbytes -= stored.nbytes
        if stored.tensors is None:
            self._file(index).unlink()

    def clear(self) -> None:
        """Delete the arguments of all batches."""
        for index in tuple(self._stored):
            self.drop(index)

    def _spill(self, index: int, tensors: list[Tensor]) -> None:
        # Views of one storage would be refused, and expanded ones cannot be written.
        whole = {str(i): tensor.contiguous().clone() for i, tensor in enumerate(tensors)}
        save(whole, self._file(index))

    def _file(self, index: int) -> Path:
        return self._folder / f"batch-{index:05d}.safetensors"


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, and make its folder.

    Raises:
        ArtifactError: the disk refused.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, path)
        except SafetensorError as error:
            raise OSError(str(error)) from None
