"""Writing of single-file artifacts: to a file beside the output, which is renamed at the end."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpq_core.artifact.files import PARTIAL_SUFFIX, replacing, write_all
from dpq_core.artifact.single import INDEX, ArtifactFile, encode_header
from dpq_core.artifact.single_manifest import ITEMS_PER_BYTE, FileManifest, Stream
from dpq_core.errors import REPLACE, ArtifactError


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A coded source before it is written.

    Attributes:
        manifest: the manifest without its ``streams``.
        whole: streams that are read in one piece.
        chunked: stream -> the bytes of each chunk.
        source_nbytes: size of the source's values in bytes.
        notes: lines for the user on what was done besides quantizing.
    """

    manifest: FileManifest
    whole: Mapping[str, bytes]
    chunked: Mapping[str, Sequence[bytes]]
    source_nbytes: int
    notes: tuple[str, ...] = ()


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse an output that is in the way, before any work is done.

    Raises:
        ArtifactError: ``out`` exists and is not to be replaced, or is no plain file, or its folder
            does not exist.
    """
    if not out.name or out.name.endswith(PARTIAL_SUFFIX):
        raise ArtifactError(f"{out}: cannot be an output; {PARTIAL_SUFFIX} marks unfinished work")
    if out.is_symlink() or (out.exists() and not out.is_file()):
        raise ArtifactError(f"{out}: exists and is not a plain file; choose another name")
    if out.exists() and not overwrite:
        raise ArtifactError(f"{out}: exists already", REPLACE)
    if out.exists() and not ArtifactFile.is_artifact_file(out):
        raise ArtifactError(f"{out}: exists and is not a dpq artifact; choose another name")


def complete(packed: Packed) -> tuple[FileManifest, dict[str, Sequence[bytes]]]:
    """The manifest with sizes and hashes of all streams, and their contents in file order."""
    manifest, chunked = packed.manifest, packed.chunked
    numbers = np.zeros((manifest.chunks, len(chunked), 2), "<u4")
    for column, parts in enumerate(chunked.values()):
        for chunk, part in enumerate(parts):
            numbers[chunk, column] = len(part), zlib.crc32(part)
    contents: dict[str, Sequence[bytes]] = {INDEX: [numbers.tobytes()]}
    contents |= {name: [content] for name, content in packed.whole.items()} | dict(chunked)
    streams = {}
    for name, parts in contents.items():
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        streams[name] = Stream(
            bytes=sum(map(len, parts)), sha256=digest.hexdigest(), chunked=name in chunked
        )
    return dataclasses.replace(manifest, streams=streams), contents


def header_of(manifest: FileManifest) -> bytes:
    """The header, padded so that the file is long enough for its items (FORMAT.md, S6)."""
    header = encode_header(manifest)
    size = len(header) + sum(s.bytes for s in manifest.streams.values())
    missing = -(-manifest.items // ITEMS_PER_BYTE) - size
    return encode_header(manifest, room=missing) if missing > 0 else header


def size_of(packed: Packed) -> int:
    """Size of the file to be written, in bytes."""
    manifest = complete(packed)[0]
    return len(header_of(manifest)) + sum(s.bytes for s in manifest.streams.values())


def write(
    out: Path,
    manifest: FileManifest,
    contents: Mapping[str, Sequence[bytes]],
    *,
    overwrite: bool = False,
) -> ArtifactFile:
    """Write what ``complete`` returned; ``out`` appears when it is whole, or not at all.

    Raises:
        ArtifactError: ``out`` is in the way, or the operating system refused.
    """
    check_output(out, overwrite=overwrite)
    header = header_of(manifest)
    with replacing(out) as partial, partial.open("wb", buffering=0) as file:
        write_all(file.fileno(), header)
        for parts in contents.values():
            for part in parts:
                write_all(file.fileno(), part)
    return ArtifactFile.open(out)
