"""The manifest ``dpq.json``: what an artifact holds, and the promise against which it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dpq_core.artifact import strict_json
from dpq_core.artifact.entries import (
    MAX_TEXT_BYTES,
    DataEntry,
    FileEntry,
    TensorEntry,
    data_from_json,
    entry_from_json,
    files_from_json,
    spec_from_json,
    versions_from_json,
    weights_from_json,
)
from dpq_core.artifact.shards import component_of
from dpq_core.artifact.strict_json import one_line, shown, typed
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.plan import Plan
from dpq_core.tensor.pq_tensor import Part, expected_parts
from dpq_core.version import __version__

FORMAT_VERSION = 3
"""The newest version; an artifact has the oldest one that can say it (FORMAT.md, F24)."""

_DATA_VERSION = 3
"""The version of an artifact that says what data it was made with."""

MAX_MANIFEST_BYTES = 32 << 20
MAX_TENSORS = 100_000
ERROR_BYTES = 24
"""A relative error is a float of at most this many digits."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is said about an artifact; nothing in it varies between identical runs.

    Attributes:
        adapter: name of the adapter that made it.
        source: the source, as the user named it.
        fingerprint: hash of source and plan, in which a resumed run must agree.
        weights: component -> stem of its weight files, folders included; "" is the only component
            of a model that has no parts.
        specs: the distinct specs, referred to by index.
        tensors: entries of the tensors, in storage order.
        files: relative name -> size and hash, of all files but the manifest itself.
        versions: library -> version that wrote the artifact.
        data: what was read to make it, job by job; empty where no data was read.
    """

    adapter: str
    source: str
    fingerprint: str
    weights: Mapping[str, str]
    specs: tuple[QuantSpec, ...]
    tensors: tuple[TensorEntry, ...]
    files: Mapping[str, FileEntry]
    versions: Mapping[str, str]
    data: tuple[DataEntry, ...] = ()

    @property
    def format_version(self) -> int:
        """The oldest version of the format that can hold this manifest (F24)."""
        version = format_version(self.specs)
        return max(version, _DATA_VERSION) if self.data else version

    def partition(self, entry: TensorEntry) -> Partition | None:
        """The partition of a quantized tensor, None for a kept one.

        Raises:
            SpecError: shape, layout and spec do not fit together.
        """
        if entry.spec is None or entry.layout is None:
            return None
        return Partition.of(entry.shape, entry.layout, self.specs[entry.spec])

    def stored(self, entry: TensorEntry) -> dict[str, Part]:
        """The stored tensors of one tensor of the model: name -> dtype and shape.

        Raises:
            ArtifactError: shape, layout and spec do not fit together.
        """
        try:
            partition = self.partition(entry)
        except SpecError as error:
            raise ArtifactError(f"tensor {shown(entry.name)}: {one_line(error)}") from None
        if partition is None or entry.spec is None:
            return {entry.name: (entry.torch_dtype, entry.shape)}
        parts = expected_parts(partition, self.specs[entry.spec])
        return {f"{entry.name}.{part}": value for part, value in parts.items()}

    @property
    def stored_nbytes(self) -> int:
        """Size of all stored tensors without headers, in bytes."""
        return sum(
            dtype.itemsize * math.prod(shape)
            for entry in self.tensors
            for dtype, shape in self.stored(entry).values()
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values, in the order in which they are written."""
        return {
            "format_version": self.format_version,
            "adapter": self.adapter,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "weights": dict(self.weights),
            "versions": dict(sorted(self.versions.items())),
            **({"data": [vars(entry) for entry in self.data]} if self.data else {}),
            "specs": [spec.to_json() for spec in self.specs],
            "files": {name: vars(self.files[name]) for name in sorted(self.files)},
            "tensors": [
                {**vars(t), "shape": list(t.shape), "layout": t.layout and str(t.layout)}
                for t in self.tensors
            ],
        }

    def to_bytes(self) -> bytes:
        """The content of ``dpq.json``: one line per spec, file and tensor."""
        lines = []
        for key, value in self.to_json().items():
            if isinstance(value, list):
                items, ends = [_dumps(item) for item in value], "[]"
            elif isinstance(value, dict):
                items, ends = [f"{_dumps(k)}: {_dumps(v)}" for k, v in value.items()], "{}"
            else:
                lines.append(f" {_dumps(key)}: {_dumps(value)}")
                continue
            body = ",\n  ".join(items)
            lines.append(f" {_dumps(key)}: {ends[0]}\n  {body}\n {ends[1]}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """The inverse of ``to_bytes``; ``where`` begins every error message.

        Raises:
            ArtifactError: not strict JSON, or anything that ``from_json`` refuses.
        """
        return cls.from_json(strict_json.parse(data, where), where)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "manifest") -> Manifest:
        """The inverse of ``to_json``: every key, type and range is checked.

        Raises:
            ArtifactError: unknown version, unknown or missing key, wrong type, value out of range.
        """
        version = data.get("format_version")
        if type(version) is int and not 1 <= version <= FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format version {shown(version)} is not known; this dpq reads 1 to "
                f"{FORMAT_VERSION}, upgrade dpq"
            )
        keys = {"format_version", *cls.__dataclass_fields__}
        if version != _DATA_VERSION or "data" not in data:
            keys.remove("data")
        fields = strict_json.exactly(dict(data), keys, where)
        typed(version, int, f"{where}: format_version")
        adapter, source, fingerprint = (
            strict_json.text(fields[key], MAX_TEXT_BYTES, f"{where}: {key}")
            for key in ("adapter", "source", "fingerprint")
        )
        specs = _list(fields["specs"], MAX_TENSORS, f"{where}: specs")
        entries = _list(fields["tensors"], MAX_TENSORS, f"{where}: tensors")
        tensors = tuple(entry_from_json(entry, len(specs), where) for entry in entries)
        weights = weights_from_json(fields["weights"], f"{where}: weights")
        for entry in tensors:
            if component_of(entry.name, weights) is None:
                raise ArtifactError(f"{where}: tensor {shown(entry.name)} belongs to no component")
        names = {t.name for t in tensors}
        if len(names) != len(tensors):
            raise ArtifactError(f"{where}: two tensors have the same name")
        manifest = cls(
            adapter=adapter,
            source=source,
            fingerprint=fingerprint,
            weights=weights,
            specs=tuple(spec_from_json(spec, f"{where}: spec {i}") for i, spec in enumerate(specs)),
            tensors=tensors,
            files=files_from_json(fields["files"], where),
            versions=versions_from_json(fields["versions"], f"{where}: versions"),
            data=data_from_json(fields["data"], f"{where}: data") if "data" in fields else (),
        )
        if manifest.format_version != version:
            raise ArtifactError(
                f"{where}: format version {version} does not suit its specs, which need version "
                f"{manifest.format_version}"
            )
        return manifest


def format_version(specs: Iterable[QuantSpec]) -> int:
    """The oldest version of the format that can hold these specs: that of the newest spec."""
    return max((spec.version for spec in specs), default=1)


def draft(
    plan: Plan,
    *,
    adapter: str,
    source: str,
    fingerprint: str,
    weights: Mapping[str, str],
    data: Iterable[DataEntry] = (),
) -> Manifest:
    """The manifest of a plan before anything is written: no errors, no files.

    Raises:
        ArtifactError: a reader would refuse it (an unusable name, too many tensors, ...).
    """
    specs: list[QuantSpec] = list(dict.fromkeys(t.spec for t in plan if t.spec is not None))
    manifest = Manifest(
        adapter=adapter,
        source=source,
        fingerprint=fingerprint,
        weights=dict(weights),
        specs=tuple(specs),
        tensors=tuple(
            TensorEntry(
                name=t.name,
                shape=tuple(t.info.shape),
                dtype=str(t.info.dtype).removeprefix("torch."),
                layout=t.partition.layout if t.partition else None,
                spec=specs.index(t.spec) if t.spec else None,
            )
            for t in plan
        ),
        files={},
        versions=library_versions(),
        data=tuple(data),
    )
    Manifest.from_json(manifest.to_json(), "plan")
    room = (1 << 20) + ERROR_BYTES * len(manifest.tensors)
    if len(manifest.to_bytes()) + room > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"plan: its manifest would exceed {MAX_MANIFEST_BYTES} bytes")
    return manifest


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide the bytes of an artifact."""
    versions = {"dpq": __version__}
    for library in ("numba", "numpy", "safetensors", "torch"):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:  # vendored or built without metadata
            versions[library] = "unknown"
    return versions


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _list(value: object, limit: int, where: str) -> list[Any]:
    items = typed(value, list, where)
    if len(items) > limit:
        raise ArtifactError(f"{where}: {len(items)} items are more than {limit}")
    return items
