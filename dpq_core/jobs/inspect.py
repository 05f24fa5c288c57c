"""Inspection of an artifact: its contents and, on request, their verification."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.artifact import Artifact, ArtifactFile
from dpq_core.artifact.stored import StoredModel
from dpq_core.errors import ArtifactError
from dpq_core.jobs.compress_file import attribute_table, attributes_json
from dpq_core.jobs.probe import check_probe
from dpq_core.jobs.report import Report, Table, facts
from dpq_core.jobs.request import open_artifact
from dpq_core.plugin import registry
from dpq_core.run import Run
from dpq_core.sizes import format_size
from dpq_core.spec import QuantSpec

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest
    from dpq_core.artifact.entries import TensorEntry


@dataclass(frozen=True, kw_only=True)
class InspectReport(Report):
    """The contents of an artifact.

    Attributes:
        artifact: the opened artifact.
        verified: name of each check -> its outcome; None without verification.
    """

    artifact: StoredModel
    verified: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The contents as plain JSON values, sizes in bytes, and the outcome of a verification."""
        values = self.contents()
        return values if self.verified is None else {**values, "verified": self.verified}

    @abstractmethod
    def contents(self) -> dict[str, Any]:
        """The contents as plain JSON values, sizes in bytes."""

    @abstractmethod
    def tensor_table(self) -> Table:
        """A table of the tensors of a folder, or of the attributes of a file."""

    def remarks(self) -> tuple[str, ...]:
        """A line on the outcome of the verification."""
        if self.verified is None:
            return ()
        return ("verified: " + "; ".join(f"{k} {v}" for k, v in self.verified.items()),)


@dataclass(frozen=True, kw_only=True)
class FolderInspection(InspectReport):
    """The tensors and files of a folder."""

    artifact: Artifact

    def contents(self) -> dict[str, Any]:
        """Sizes, specs, files and tensors as plain JSON values."""
        return _folder_json(self.artifact)

    def tables(self) -> tuple[Table, ...]:
        """A table of the totals."""
        return (_folder_facts(self.contents()),)

    def tensor_table(self) -> Table:
        """A table of the tensors with their specs, bits and errors."""
        columns = ("tensor", "shape", "spec", ">bits/weight", ">relative error", ">size")
        return Table("", columns, tuple(map(_tensor_row, self.contents()["tensors"])))


@dataclass(frozen=True, kw_only=True)
class FileInspection(InspectReport):
    """The attributes and streams of a single file."""

    artifact: ArtifactFile

    def contents(self) -> dict[str, Any]:
        """Sizes, attributes and streams as plain JSON values."""
        return _file_json(self.artifact)

    def tables(self) -> tuple[Table, ...]:
        """A table of the totals, and one of the attributes."""
        return (_file_facts(self.contents()), self.tensor_table())

    def tensor_table(self) -> Table:
        """A table of the attributes with their bits and errors."""
        return attribute_table(self.artifact.manifest, self.artifact.nbytes)

    def remarks(self) -> tuple[str, ...]:
        """A line on the outcome of the verification."""
        if self.verified is None:
            return ()
        return (f"verified: the hashes of {len(self.artifact.manifest.streams)} streams match",)


def inspect(path: Path, *, verify: bool = False, run: Run | None = None) -> InspectReport:
    """Inspect an artifact; with ``verify``, read every byte and run the probe again.

    Raises:
        ArtifactError: the artifact is missing, half-written, damaged or hostile; with ``verify``
            also if a hash differs, or if the loaded model does not give the stored outputs.
    """
    run = run or Run()
    artifact = open_artifact(str(path))
    if isinstance(artifact, ArtifactFile):
        checked = _verify_file(artifact, run) if verify else None
        return FileInspection(artifact=artifact, verified=checked)
    return FolderInspection(artifact=artifact, verified=_verify(artifact, run) if verify else None)


def _verify_file(artifact: ArtifactFile, run: Run) -> dict[str, str]:
    artifact.verify(run.progress)
    return {"hashes": "match"}


def _verify(artifact: Artifact, run: Run) -> dict[str, str]:
    adapter = registry.load(artifact.manifest.adapter)
    with registry.explain_missing(adapter.name):
        artifact.verify(run.progress)
        result = check_probe(adapter, artifact, run)
    hashes = {"hashes": f"match ({len(artifact.manifest.files)} files)"}
    if result is None:
        return {**hashes, "probe": "none stored"}
    if not result.ok:
        raise ArtifactError(
            f"{artifact.path}: the files are whole, but the loaded model differs from the one that "
            f"was written by {result.max_difference:.2g} of its outputs' RMS; check the versions "
            "in `dpq inspect` against `dpq doctor`"
        )
    return {**hashes, "probe": f"matches (difference {result.max_difference:.2g} of RMS)"}


def _folder_json(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    weights = sum(math.prod(entry.shape) for entry in manifest.tensors)
    return {
        "path": str(artifact.path),
        "format_version": manifest.format_version,
        "adapter": manifest.adapter,
        "source": manifest.source,
        "versions": dict(manifest.versions),
        "data": [dataclasses.asdict(entry) for entry in manifest.data],
        "weights": weights,
        "nbytes": artifact.nbytes,
        "bits_per_weight": 8 * artifact.nbytes / max(1, weights),
        "ratio_16_bit": 2 * weights / artifact.nbytes,
        "ratio_32_bit": 4 * weights / artifact.nbytes,
        "specs": [spec.to_json() for spec in manifest.specs],
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "tensors": [_tensor_json(manifest, entry) for entry in manifest.tensors],
    }


def _tensor_json(manifest: Manifest, entry: TensorEntry) -> dict[str, Any]:
    parts = manifest.stored(entry).values()
    nbytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in parts)
    return {
        "name": entry.name,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "layout": None if entry.layout is None else str(entry.layout),
        "spec": entry.spec,
        "nbytes": nbytes,
        "bits_per_weight": 8 * nbytes / max(1, math.prod(entry.shape)),
        "relative_error": entry.relative_error,
    }


def _file_json(file: ArtifactFile) -> dict[str, Any]:
    manifest = file.manifest
    return {
        "path": str(file.path),
        "adapter": manifest.adapter,
        "source": manifest.source,
        "versions": dict(manifest.versions),
        "items": manifest.items,
        "source_items": manifest.source_items,
        "chunks": manifest.chunks,
        "nbytes": file.nbytes,
        "bits_per_item": 8 * file.nbytes / max(1, manifest.items),
        "attributes": attributes_json(manifest),
        "streams": {name: stream.bytes for name, stream in manifest.streams.items()},
    }


def _folder_facts(values: dict[str, Any]) -> Table:
    errors = [t["relative_error"] for t in values["tensors"] if t["relative_error"] is not None]
    rows: list[tuple[str, object]] = [
        ("adapter", values["adapter"]),
        ("source", values["source"]),
        ("size", f"{format_size(values['nbytes'])} on disk, {len(values['files']) + 1} files"),
        ("weights", f"{values['weights']:,}"),
        ("true bits per weight", f"{values['bits_per_weight']:.3f}"),
        ("against 16 bits", f"{values['ratio_16_bit']:.2f}x smaller"),
        ("against 32 bits", f"{values['ratio_32_bit']:.2f}x smaller"),
        ("quantized", f"{len(errors)} of {len(values['tensors'])} tensors"),
    ]
    if errors:
        mean = sum(errors) / len(errors)
        rows.append(("relative error", f"mean {mean:.4f}, worst {max(errors):.4f}"))
    rows += [(f"read to {entry['use']}", entry["description"]) for entry in values["data"]]
    rows += [(f"spec {i}", _spec(spec)) for i, spec in enumerate(values["specs"])]
    rows.append(("written by", _versions(values)))
    return facts(values["path"], *rows)


def _file_facts(values: dict[str, Any]) -> Table:
    return facts(
        values["path"],
        ("adapter", values["adapter"]),
        ("source", values["source"]),
        ("size", f"{format_size(values['nbytes'])} on disk"),
        ("items", f"{values['items']:,} of {values['source_items']:,}"),
        ("chunks", values["chunks"]),
        ("bits per item", f"{values['bits_per_item']:.2f}"),
        ("written by", _versions(values)),
    )


def _versions(values: dict[str, Any]) -> str:
    return ", ".join(f"{library} {version}" for library, version in values["versions"].items())


def _tensor_row(tensor: dict[str, Any]) -> tuple[object, ...]:
    error = tensor["relative_error"]
    return (
        tensor["name"],
        "x".join(map(str, tensor["shape"])) or "scalar",
        "kept" if tensor["spec"] is None else tensor["spec"],
        f"{tensor['bits_per_weight']:.3f}",
        None if error is None else f"{error:.4f}",
        format_size(tensor["nbytes"]),
    )


def _spec(spec: dict[str, Any]) -> str:
    """The fields of a spec that differ from the defaults, after d and K."""
    defaults = dataclasses.asdict(QuantSpec()) | {k: spec[k] for k in ("version", "d", "K")}
    changed = {k: v for k, v in spec.items() if v != defaults[k]}
    return " ".join(f"{k}={v}" for k, v in {"d": spec["d"], "K": spec["K"], **changed}.items())
