"""Single-file artifacts: one safetensors file whose metadata is the manifest (FORMAT.md, S).

Items (such as Gaussians) are stored in chunks; each chunk can be decoded alone, and its bytes are
mapped, not read. Everything is checked before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dpq_core.artifact import strict_json
from dpq_core.artifact.files import BLOCK_BYTES, check_adapter, reading
from dpq_core.artifact.header import LENGTH_BYTES
from dpq_core.artifact.single_manifest import ITEMS_PER_BYTE, MAX_ENTRIES, FileManifest
from dpq_core.artifact.strict_json import shown
from dpq_core.errors import ArtifactError
from dpq_core.run import Progress, silent

INDEX = "index"
"""Name of the stream with the size and the crc32 (both u32) of each part of a chunked stream."""

FORMAT = "dpq"
MAX_HEADER_BYTES = 4 << 20
_PART = np.dtype([("bytes", "<u4"), ("crc32", "<u4")])


class ArtifactFile:
    """A checked single-file artifact, mapped into memory; its parts are read on demand.

    Attributes:
        path: the file.
        manifest: its manifest.
        nbytes: its size in bytes.
    """

    SUFFIX: ClassVar[str] = ".dpq"

    def __init__(self, path: Path, manifest: FileManifest, data: memoryview, start: int) -> None:
        """Keep what ``open`` has checked; call ``open`` instead."""
        self.path = path
        self.manifest = manifest
        self.nbytes = len(data)
        self._data = data
        self._begin: dict[str, int] = {}
        for name, stream in manifest.streams.items():
            self._begin[name] = start
            start += stream.bytes
        self._parts, self._offsets = self._read_index()

    @classmethod
    def open(cls, path: str | Path, *, adapter: str | None = None) -> ArtifactFile:
        """Map a file and check its header, manifest and index.

        Args:
            path: the file.
            adapter: the adapter that must have made it; None allows any.

        Raises:
            ArtifactError: the file is missing, damaged, hostile or another adapter's.
        """
        path = Path(path)
        with reading(path), path.open("rb") as file:
            size = path.stat().st_size
            if size < LENGTH_BYTES:
                raise ArtifactError(f"{path}: truncated, {size} bytes are no .dpq file")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        manifest, start = _read_header(path, data)
        if start + sum(s.bytes for s in manifest.streams.values()) != size:
            raise ArtifactError(f"{path}: its streams do not fill the file; it was cut or changed")
        if manifest.items > ITEMS_PER_BYTE * size:
            raise ArtifactError(f"{path}: {manifest.items} items are too many for {size} bytes")
        check_adapter(path, manifest.adapter, adapter)
        return cls(path, manifest, data, start)

    @staticmethod
    def is_artifact_file(path: str | Path) -> bool:
        """Whether ``path`` is a file that begins like a single-file artifact; a cheap check."""
        try:
            with Path(path).open("rb") as file:
                head = file.read(LENGTH_BYTES + len(_OPENING))
        except (OSError, ValueError):  # a name too long, or with a NUL: no path at all
            return False
        return head[LENGTH_BYTES:] == _OPENING

    def stream(self, name: str) -> memoryview:
        """The bytes of one stream, not copied.

        Raises:
            ArtifactError: there is no such stream.
        """
        if name not in self._begin:
            raise ArtifactError(f"{self.path}: there is no stream {shown(name)}")
        begin = self._begin[name]
        return self._data[begin : begin + self.manifest.streams[name].bytes]

    def part(self, name: str, chunk: int) -> memoryview:
        """The bytes of one chunk of a chunked stream, checked against their crc32.

        Raises:
            ArtifactError: there is no such stream or chunk, or the bytes are damaged.
        """
        names = self.manifest.chunked
        if name not in names or not 0 <= chunk < self.manifest.chunks:
            raise ArtifactError(f"{self.path}: there is no chunk {chunk} of {shown(name)}")
        column = names.index(name)
        begin, end = (int(self._offsets[chunk + k, column]) for k in (0, 1))
        data = self.stream(name)[begin:end]
        if zlib.crc32(data) != int(self._parts["crc32"][chunk, column]):
            raise ArtifactError(f"{self.path}: chunk {chunk} of {shown(name)} is damaged (crc32)")
        return data

    def problems(self, progress: Progress = silent) -> list[str]:
        """The streams whose hashes differ, after reading every byte; or none."""
        lines, done = [], 0
        for name, stream in self.manifest.streams.items():
            data, digest = self.stream(name), hashlib.sha256()
            for at in range(0, len(data), BLOCK_BYTES):
                digest.update(data[at : at + BLOCK_BYTES])
                progress("verify", done + at, self.nbytes)
            done += len(data)
            if digest.hexdigest() != stream.sha256:
                lines.append(f"{self.path}: the sha256 of stream {shown(name)} differs")
        progress("verify", self.nbytes, self.nbytes)
        return lines

    def verify(self, progress: Progress = silent) -> None:
        """Check every byte of the file.

        Raises:
            ArtifactError: the first of ``problems()``.
        """
        if lines := self.problems(progress):
            raise ArtifactError(lines[0])

    def _read_index(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Sizes and checksums ``[chunks, streams]``, and offsets ``[chunks + 1, streams]``."""
        manifest, names = self.manifest, self.manifest.chunked
        data = self.stream(INDEX)
        if len(data) != manifest.chunks * len(names) * _PART.itemsize:
            raise ArtifactError(f"{self.path}: its index does not fit its chunks")
        parts = np.frombuffer(data, _PART).reshape(manifest.chunks, len(names))
        offsets = np.zeros((manifest.chunks + 1, len(names)), np.int64)
        np.cumsum(parts["bytes"], axis=0, out=offsets[1:])
        for name, end in zip(names, offsets[-1], strict=True):
            if end != manifest.streams[name].bytes:
                raise ArtifactError(f"{self.path}: the chunks of {shown(name)} do not fill it")
        return parts, offsets


_OPENING = b'{"__metadata__":{"format":"dpq",'


def encode_header(manifest: FileManifest, room: int = 0) -> bytes:
    """Length prefix and header; ``room`` bytes of spaces are added to those of the alignment."""
    entries: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "manifest": manifest.to_text()},
    }
    begin = 0
    for name, stream in manifest.streams.items():
        entries[name] = {
            "dtype": "U8",
            "shape": [stream.bytes],
            "data_offsets": [begin, begin + stream.bytes],
        }
        begin += stream.bytes
    body = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    body += b" " * (room + -(len(body) + room) % 8)
    if len(body) > MAX_HEADER_BYTES:
        raise ArtifactError(f"a header of {len(body)} bytes is over the limit {MAX_HEADER_BYTES}")
    return struct.pack("<Q", len(body)) + body


def _read_header(path: Path, data: memoryview) -> tuple[FileManifest, int]:
    """The manifest, and the first byte of the streams."""
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    if length > min(MAX_HEADER_BYTES, len(data) - LENGTH_BYTES):
        raise ArtifactError(f"{path}: a header of {length} bytes is over the limit or the file")
    body = bytes(data[LENGTH_BYTES : LENGTH_BYTES + length])
    if not body.startswith(_OPENING):
        raise ArtifactError(f"{path}: not a .dpq file")
    entries = strict_json.parse(body, str(path))
    metadata = strict_json.exactly(
        entries.pop("__metadata__"), ("format", "manifest"), f"{path}: __metadata__"
    )
    text = strict_json.typed(metadata["manifest"], str, f"{path}: manifest")
    manifest = FileManifest.from_text(text, f"{path}: manifest")
    if list(entries) != list(manifest.streams) or len(entries) > MAX_ENTRIES:
        raise ArtifactError(f"{path}: its tensors are not the streams of its manifest")
    if INDEX not in entries or manifest.streams[INDEX].chunked:
        raise ArtifactError(f"{path}: it has no index")
    begin = 0
    for name, stream in manifest.streams.items():
        place = {"dtype": "U8", "shape": [stream.bytes]}
        place["data_offsets"] = [begin, begin + stream.bytes]
        if entries[name] != place:
            raise ArtifactError(f"{path}: stream {shown(name)} is not where it must be")
        begin += stream.bytes
    return manifest, LENGTH_BYTES + length
