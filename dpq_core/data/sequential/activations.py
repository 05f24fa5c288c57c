"""Activations: the arguments of a block for every batch, in memory up to a budget, then on disk."""

from __future__ import annotations

import zlib
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


def structure_to_json(structure: Any) -> Any:
    """A structure of arguments as JSON: a list of its kind and its content."""
    if isinstance(structure, _Slot):
        return ["tensor", structure.index]
    if type(structure) in (tuple, list):
        return [type(structure).__name__, [structure_to_json(item) for item in structure]]
    if type(structure) is dict:
        pairs = [[structure_to_json(key), structure_to_json(v)] for key, v in structure.items()]
        return ["dict", pairs]
    if isinstance(structure, torch.Size):
        return ["size", list(structure)]
    if isinstance(structure, torch.dtype | torch.device):
        return [type(structure).__name__, str(structure).removeprefix("torch.")]
    return ["plain", structure]


def structure_from_json(value: Any) -> Any:
    """The inverse of ``structure_to_json``.

    Raises:
        ValueError, TypeError, AttributeError: the value is none of its results.
    """
    kind, content = value
    if kind == "tensor":
        return _Slot(content)
    if kind in ("tuple", "list"):
        items = map(structure_from_json, content)
        return tuple(items) if kind == "tuple" else list(items)
    if kind == "dict":
        return {structure_from_json(key): structure_from_json(item) for key, item in content}
    if kind == "size":
        return torch.Size(content)
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "device":
        return torch.device(content)
    if kind != "plain":
        raise ValueError(kind)
    return content


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
            save(_whole(tensors), _file(self._folder, index))
            self._stored[index] = _Stored(structure, None, devices, 0)
        else:
            self._stored[index] = _Stored(structure, tensors, devices, nbytes)
            self.nbytes += nbytes

    def get(self, index: int) -> Any:
        """The arguments of one batch, on their devices; they must not be changed in place."""
        stored = self._stored[index]
        there = zip(self._tensors(index), stored.devices, strict=True)
        return unflatten(stored.structure, [tensor.to(device) for tensor, device in there])

    def drop(self, index: int) -> None:
        """Forget one batch, if it is there."""
        stored = self._stored.pop(index, None)
        if stored is None:
            return
        self.nbytes -= stored.nbytes
        if stored.tensors is None:
            _file(self._folder, index).unlink()

    def clear(self) -> None:
        """Delete the arguments of all batches."""
        for index in tuple(self._stored):
            self.drop(index)

    def save(self, folder: Path) -> list[Any]:
        """Write the arguments of all batches to files in a folder.

        Returns:
            What ``restore`` needs beside the files, as JSON.

        Raises:
            Unstorable: files cannot hold a dtype.
            ArtifactError: the disk refused.
        """
        content = []
        for index, stored in sorted(self._stored.items()):
            tensors = self._tensors(index)
            if not all(tensor.dtype in _SPILLED for tensor in tensors):
                raise Unstorable("a dtype that files cannot hold")
            save(_whole(tensors), _file(folder, index))
            structure = structure_to_json(stored.structure)
            content.append([index, structure, [str(d) for d in stored.devices], _crc(tensors)])
        return content

    def restore(self, folder: Path, content: list[Any]) -> None:
        """Read back what ``save`` has written.

        Raises:
            ValueError, TypeError, AttributeError, SafetensorError, OSError: the content is damaged.
        """
        for index, structure, devices, crc in content:
            tensors = _load(_file(folder, index))
            if _crc(tensors) != crc:
                raise ValueError(f"batch {index} is damaged")
            moved = [x.to(device) for x, device in zip(tensors, devices, strict=True)]
            self.put(index, unflatten(structure_from_json(structure), moved))

    def _tensors(self, index: int) -> list[Tensor]:
        """The tensors of one batch, on the CPU."""
        tensors = self._stored[index].tensors
        return _load(_file(self._folder, index)) if tensors is None else tensors


def _file(folder: Path, index: int) -> Path:
    return folder / f"batch-{index:05d}.safetensors"


def _load(path: Path) -> list[Tensor]:
    named = load_file(path)
    return [named[str(i)] for i in range(len(named))]


def _whole(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors by number, copied where they are views: files take no two of one storage."""
    named: dict[str, Tensor] = {}
    storages: set[int] = set()
    for number, tensor in enumerate(tensors):
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        alone &= storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        named[str(number)] = tensor if alone else tensor.contiguous().clone()
    return named


def _crc(tensors: Sequence[Tensor]) -> int:
    """Checksum of the values of tensors on the CPU."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


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
