"""FileManifest: the manifest in the header of a single-file artifact (FORMAT.md, S3 to S6)."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpq_core.artifact import strict_json
from dpq_core.artifact.entries import MAX_TEXT_BYTES, versions_from_json
from dpq_core.artifact.strict_json import integer, shown, typed
from dpq_core.errors import ArtifactError

FILE_VERSION = 1
"""Version of the single-file form, independent of the folder's format version."""

MAX_ITEMS = 2**40
MAX_CHUNK_ITEMS = 1 << 20
MAX_ENTRIES = 256
MAX_STREAM_BYTES = 2**62
ITEMS_PER_BYTE = 16
"""Most items per byte of the file, which bounds the work that a small file can cause."""

_NAME = re.compile(r"[a-z0-9_.]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One property of the items.

    Attributes:
        name: e.g. ``opacity``.
        shape: shape of one item's value; empty for a number.
        streams: names of the streams that hold it.
        spec: how it was quantized, as plain JSON values that the adapter understands.
        errors: measure -> error of the stored values.
    """

    name: str
    shape: tuple[int, ...]
    streams: tuple[str, ...]
    spec: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The size in bytes and the sha256 (lower-case hex) of a stream.

    A ``chunked`` stream has a part for every chunk.
    """

    bytes: int
    sha256: str
    chunked: bool


@dataclass(frozen=True, kw_only=True)
class FileManifest:
    """The manifest of a single-file artifact, which is equal for equal runs.

    Attributes:
        adapter: name of the adapter that made it.
        source: the source, as the user named it.
        fingerprint: hash of source and options.
        items: number of items, such as Gaussians.
        source_items: number of items of the source.
        chunk_items: number of items of every chunk but the last.
        attributes: attributes of the items.
        parameters: numbers that the adapter needs for decoding, plain JSON values.
        streams: name -> size and hash, in the order of the file.
        versions: library -> version that wrote the file.
    """

    adapter: str
    source: str
    fingerprint: str
    items: int
    source_items: int
    chunk_items: int
    attributes: tuple[Attribute, ...]
    parameters: Mapping[str, Any]
    streams: Mapping[str, Stream]
    versions: Mapping[str, str]

    @property
    def chunks(self) -> int:
        """The number of chunks of the items."""
        return -(-self.items // self.chunk_items)

    @property
    def chunked(self) -> tuple[str, ...]:
        """Names of the streams that have a part for every chunk."""
        return tuple(name for name, stream in self.streams.items() if stream.chunked)

    def chunk_size(self, chunk: int) -> int:
        """Number of items of one chunk."""
        return min(self.chunk_items, self.items - chunk * self.chunk_items)

    def attribute_bytes(self, attribute: Attribute) -> int:
        """Size of the streams of one attribute, in bytes."""
        return sum(self.streams[name].bytes for name in attribute.streams)

    def to_text(self) -> str:
        """The manifest as it is stored: JSON in one line."""
        values = {"dpq_file": FILE_VERSION, **dataclasses.asdict(self)}
        return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str, where: str) -> FileManifest:
        """The inverse of ``to_text``: every key, type and range is checked.

        Raises:
            ArtifactError: not strict JSON, unknown version or key, wrong type, value out of range.
        """
        data = strict_json.parse(text.encode("utf-8", "surrogatepass"), where)
        version = data.get("dpq_file")
        if type(version) is int and version != FILE_VERSION:
            raise ArtifactError(
                f"{where}: file version {shown(version)} is not known; this dpq reads version "
                f"{FILE_VERSION}, upgrade dpq"
            )
        fields = strict_json.exactly(data, ("dpq_file", *cls.__dataclass_fields__), where)
        typed(fields["dpq_file"], int, f"{where}: dpq_file")
        adapter, source, fingerprint = (
            strict_json.text(fields[key], MAX_TEXT_BYTES, f"{where}: {key}")
            for key in ("adapter", "source", "fingerprint")
        )
        streams = _streams(fields["streams"], where)
        chunk_items = integer(fields["chunk_items"], MAX_CHUNK_ITEMS, f"{where}: chunk_items")
        if chunk_items < 1:
            raise ArtifactError(f"{where}: chunks of 0 items")
        return cls(
            adapter=adapter,
            source=source,
            fingerprint=fingerprint,
            items=integer(fields["items"], MAX_ITEMS, f"{where}: items"),
            source_items=integer(fields["source_items"], MAX_ITEMS, f"{where}: source_items"),
            chunk_items=chunk_items,
            attributes=_attributes(fields["attributes"], streams, where),
            parameters=typed(fields["parameters"], dict, f"{where}: parameters"),
            streams=streams,
            versions=versions_from_json(fields["versions"], f"{where}: versions"),
        )


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ArtifactError(f"{where}: {shown(value)} is not a name of a-z, 0-9, _ and .")
    return value


def _streams(value: object, where: str) -> dict[str, Stream]:
    streams = typed(value, dict, f"{where}: streams")
    if len(streams) > MAX_ENTRIES:
        raise ArtifactError(f"{where}: {len(streams)} streams are more than {MAX_ENTRIES}")
    result = {}
    for name, entry in streams.items():
        here = f"{where}: stream {shown(_name(name, where))}"
        fields = strict_json.exactly(entry, Stream.__dataclass_fields__, here)
        sha256 = typed(fields["sha256"], str, f"{here}: sha256")
        if not _SHA256.fullmatch(sha256):
            raise ArtifactError(f"{here}: {shown(sha256)} is no sha256")
        size = integer(fields["bytes"], MAX_STREAM_BYTES, f"{here}: bytes")
        result[name] = Stream(
            bytes=size, sha256=sha256, chunked=typed(fields["chunked"], bool, f"{here}: chunked")
        )
    return result


def _attributes(value: object, streams: Mapping[str, Stream], where: str) -> tuple[Attribute, ...]:
    entries = typed(value, list, f"{where}: attributes")
    if len(entries) > MAX_ENTRIES:
        raise ArtifactError(f"{where}: {len(entries)} attributes are more than {MAX_ENTRIES}")
    result, held = [], set[str]()
    for entry in entries:
        fields = strict_json.exactly(entry, Attribute.__dataclass_fields__, f"{where}: attribute")
        here = f"{where}: attribute {shown(_name(fields['name'], where))}"
        names = tuple(_name(n, here) for n in typed(fields["streams"], list, f"{here}: streams"))
        if any(name not in streams or name in held for name in names):
            raise ArtifactError(f"{here}: its streams do not exist, or are another's too")
        held.update(names)
        errors = typed(fields["errors"], dict, f"{here}: errors")
        for measure, number in errors.items():
            _name(measure, here)
            if type(number) not in (int, float) or not 0 <= number < math.inf:
                raise ArtifactError(f"{here}: error {shown(number)} is not a number >= 0")
        result.append(
            Attribute(
                name=fields["name"],
                shape=strict_json.shape(fields["shape"], 4, 1 << 16, f"{here}: shape"),
                streams=names,
                spec=typed(fields["spec"], dict, f"{here}: spec"),
                errors=errors,
            )
        )
    if len({a.name for a in result}) != len(result):
        raise ArtifactError(f"{where}: two attributes have the same name")
    return tuple(result)
