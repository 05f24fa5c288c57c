"""The safetensors container: headers written from a plan, and read with every check.

The safetensors library reads what is written here. It is not used for reading, because a header
must be held against the manifest before anything is mapped or allocated, with our own errors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpq_core.artifact import strict_json
from dpq_core.artifact.files import reading
from dpq_core.artifact.strict_json import shown
from dpq_core.errors import ArtifactError
from dpq_core.tensor.checkpoint import DTYPES

LENGTH_BYTES = 8
"""Every file begins with the header's length as a little-endian unsigned 64-bit integer."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

HEADER_BYTES_PER_TENSOR = 2048
"""A header beyond 64 KiB must be explained by its tensors (names are at most 500 bytes)."""

MAX_RANK = 16
MAX_ELEMENTS = 2**62
MAX_NAME_BYTES = 500
MAX_FILE_BYTES = 2**62

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_METADATA = {"format": "pt"}  # transformers refuses files without it


@dataclass(frozen=True)
class Slot:
    """One stored tensor: ``begin`` and ``end`` are bytes from the start of the data section."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def encode(slots: Iterable[Slot], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length prefix and header of a file that holds ``slots`` in this order.

    Args:
        slots: the stored tensors.
        metadata: further entries of the header's metadata.

    Raises:
        ArtifactError: a dtype that safetensors lacks, an unusable name, or too many tensors.
    """
    entries: dict[str, Any] = {"__metadata__": {**_METADATA, **(metadata or {})}}
    for slot in slots:
        strict_json.text(slot.name, MAX_NAME_BYTES, "tensor name")
        if slot.name in entries:
            raise ArtifactError(f"two stored tensors are called {shown(slot.name)}")
        if slot.dtype not in _CODES:
            raise ArtifactError(f"tensor {shown(slot.name)}: {slot.dtype} cannot be stored")
        entries[slot.name] = {
            "dtype": _CODES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [slot.begin, slot.end],
        }
    body = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    body += b" " * (-len(body) % 8)  # the data section starts at a multiple of eight
    if len(body) > MAX_HEADER_BYTES:
        raise ArtifactError(f"a header of {len(body)} bytes is too large; use smaller shards")
    return struct.pack("<Q", len(body)) + body


def read(path: Path, file_bytes: int, tensors: int) -> tuple[int, dict[str, Slot]]:
    """Read the header of a file that has no metadata but the format; see ``read_with_metadata``.

    Raises:
        ArtifactError: as there, or there is other metadata.
    """
    start, slots, metadata = read_with_metadata(path, file_bytes, tensors)
    if metadata != _METADATA:
        raise ArtifactError(f"{path}: __metadata__ is not {json.dumps(_METADATA)}")
    return start, slots


def read_with_metadata(
    path: Path, file_bytes: int, tensors: int
) -> tuple[int, dict[str, Slot], object]:
    """Read a header: first byte of the data section, the stored tensors by name, the metadata.

    Args:
        path: a regular file of ``file_bytes`` bytes.
        file_bytes: its size.
        tensors: number of stored tensors of the whole artifact, which bounds the header.

    Raises:
        ArtifactError: the header is truncated, too large, malformed, or its offsets overlap,
            leave holes or do not match the shapes and the size of the file.
    """
    limit = min(MAX_HEADER_BYTES, 65_536 + HEADER_BYTES_PER_TENSOR * tensors)
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        if len(prefix) < LENGTH_BYTES:
            raise ArtifactError(f"{path}: truncated, {len(prefix)} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > file_bytes - LENGTH_BYTES:
            raise ArtifactError(f"{path}: the header's length {length} exceeds the file")
        if length > limit:
            raise ArtifactError(f"{path}: a header of {length} bytes is over the limit {limit}")
        body = file.read(length)
    if len(body) != length or not body.startswith(b"{"):
        raise ArtifactError(f"{path}: truncated, or no safetensors header")
    entries = strict_json.parse(body, str(path))
    metadata = entries.pop("__metadata__", None)
    slots = {name: _slot(path, name, entry) for name, entry in entries.items()}
    _check_offsets(path, slots, file_bytes - LENGTH_BYTES - length)
    return LENGTH_BYTES + length, slots, metadata


def read_tensor(path: Path, start: int, slot: Slot) -> torch.Tensor:
    """Read one stored tensor into new memory.

    Args:
        path: the file.
        start: first byte of its data section.
        slot: place of the tensor.

    Raises:
        ArtifactError: the file was cut or changed since its header was read.
    """
    data = torch.empty(slot.end - slot.begin, dtype=torch.uint8)
    with reading(path), path.open("rb", buffering=0) as file:
        file.seek(start + slot.begin)
        remaining = data.numpy().data
        while remaining:
            count = file.readinto(remaining)
            if not count:
                raise ArtifactError(f"{path}: truncated in tensor {shown(slot.name)}")
            remaining = remaining[count:]
    if slot.dtype == torch.bool and bool((data > 1).any()):
        raise ArtifactError(f"{path}: tensor {shown(slot.name)}: a bool is not 0 or 1")
    return data.view(slot.dtype).reshape(slot.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The row-major bytes of a tensor, copied only where it is not contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _slot(path: Path, name: str, entry: object) -> Slot:
    strict_json.text(name, MAX_NAME_BYTES, f"{path}: tensor name")
    where = f"{path}: tensor {shown(name)}"
    fields = strict_json.exactly(entry, ("dtype", "shape", "data_offsets"), where)
    code = strict_json.typed(fields["dtype"], str, f"{where}: dtype")
    if code not in DTYPES:
        raise ArtifactError(f"{where}: unknown dtype {shown(code)}")
    shape = strict_json.shape(fields["shape"], MAX_RANK, MAX_ELEMENTS, f"{where}: shape")
    offsets = strict_json.typed(fields["data_offsets"], list, f"{where}: data_offsets")
    if len(offsets) != 2:
        raise ArtifactError(f"{where}: data_offsets {shown(offsets)} are not two integers")
    begin, end = (strict_json.integer(o, MAX_FILE_BYTES, f"{where}: data_offsets") for o in offsets)
    if end - begin != math.prod(shape) * DTYPES[code].itemsize:
        raise ArtifactError(
            f"{where}: {code} {shown(list(shape))} does not fill the bytes {begin}..{end}"
        )
    return Slot(name, DTYPES[code], shape, begin, end)


def _check_offsets(path: Path, slots: dict[str, Slot], data_bytes: int) -> None:
    """No hole and no overlap: each tensor begins where the one before it ends."""
    position = 0
    for slot in sorted(slots.values(), key=lambda s: (s.begin, s.end)):
        if slot.begin != position:
            kind = "overlaps another" if slot.begin < position else "leaves a hole before it"
            raise ArtifactError(f"{path}: tensor {shown(slot.name)} {kind} at byte {slot.begin}")
        position = slot.end
    if position != data_bytes:
        raise ArtifactError(
            f"{path}: holds {data_bytes} bytes of data, but its tensors take {position}"
        )
