"""Checkpoint: the named tensors of a source, read one at a time, and the files beside them."""

from __future__ import annotations

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpq_core.errors import SourceError


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor that is not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.numel * self.dtype.itemsize


class Checkpoint(ABC):
    """The named tensors of a source that an adapter has opened.

    Attributes:
        source: what the user named (a path, a hub id, ``builtin:NAME``).
        tensors: name -> shape and dtype, in storage order; nothing is read yet.
        side_files: relative path in the artifact -> file to copy there (tokenizer, scheduler, ...).
        fingerprint: changes whenever the source does; guards ``--resume``.
    """

    source: str
    tensors: Mapping[str, TensorInfo]
    side_files: Mapping[str, Path]
    fingerprint: str

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, on the CPU; only this one is brought into memory."""


@dataclass
class SafetensorsCheckpoint(Checkpoint):
    """Tensors of one or more safetensors files, opened lazily.

    Raises:
        SourceError: a file is missing, is not safetensors, or two files hold the same name.
    """

    source: str
    files: list[Path]
    side_files: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the headers of all files, and no tensor."""
        self._file_of: dict[str, Path] = {}
        self.tensors: dict[str, TensorInfo] = {}
        digest = hashlib.sha256()
        for path in self.files:
            self._add(path)
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        for name, info in self.tensors.items():
            digest.update(f"{name} {info.shape} {info.dtype}\n".encode())
        self.fingerprint = digest.hexdigest()

    def _add(self, path: Path) -> None:
        """Add the names, shapes and dtypes of one file."""
        if not path.is_file():
            raise SourceError(f"{path}: no such file; the checkpoint is incomplete")
        try:
            with safe_open(path, framework="pt") as handle:
                for name in handle.offset_keys():
                    if name in self._file_of:
                        other = self._file_of[name]
                        raise SourceError(f"{path}: tensor {name!r} is also in {other}")
                    view = handle.get_slice(name)
                    dtype = DTYPES.get(view.get_dtype())
                    if dtype is None:
                        raise SourceError(f"{path}: {name!r} has dtype {view.get_dtype()}")
                    self._file_of[name] = path
                    self.tensors[name] = TensorInfo(tuple(view.get_shape()), dtype)
        except (SafetensorError, OSError) as error:
            raise SourceError(_unreadable(path, error)) from None

    def read(self, name: str) -> Tensor:
        """Read one tensor; the file is opened anew, so that no mapped page stays resident."""
        try:
            with safe_open(self._file_of[name], framework="pt") as handle:
                tensor: Tensor = handle.get_tensor(name)
                return tensor.clone()
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{self._file_of[name]}: cannot read {name!r} ({error})") from None

    def read_slice(self, name: str, index: int) -> Tensor:
        """Read one entry of a tensor along its first axis, and nothing else of it."""
        try:
            with safe_open(self._file_of[name], framework="pt") as handle:
                entry: Tensor = handle.get_slice(name)[index]
                return entry.clone()
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{self._file_of[name]}: cannot read {name!r} ({error})") from None


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtype code of safetensors -> torch dtype."""


def _unreadable(path: Path, error: Exception) -> str:
    """The message for a weight file that has no readable header."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return f"{path}: a git-lfs pointer, not the weights: run `git lfs pull` in its folder"
        if "incomplete" in str(error).lower() or "invalidheaderlength" in str(error).lower():
            return (
                f"{path}: not a readable safetensors file ({error}); it was cut or changed: if it "
                "was downloaded, the download is incomplete: fetch it again"
            )
    return f"{path}: not a readable safetensors file ({error})"


_LFS_POINTER = b"version https://git-lfs"
"""How the small text file begins that git keeps in place of a large one."""
