"""Artifact: reads an artifact; everything is checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpq_core.artifact import header, shards, strict_json
from dpq_core.artifact.entries import TensorEntry
from dpq_core.artifact.files import (
    JOURNAL_NAME,
    MANIFEST_NAME,
    PARTIAL_SUFFIX,
    check_adapter,
    locate,
    reading,
)
from dpq_core.artifact.header import Slot
from dpq_core.artifact.manifest import MAX_MANIFEST_BYTES, Manifest
from dpq_core.artifact.strict_json import one_line, shown
from dpq_core.artifact.verify import problems
from dpq_core.errors import ArtifactError, Hint
from dpq_core.run import Progress, silent
from dpq_core.tensor.checkpoint import TensorInfo
from dpq_core.tensor.plan import TensorPlan
from dpq_core.tensor.pq_tensor import PQTensor


@dataclass(frozen=True)
class Home:
    """The place of one stored tensor; ``start`` is the first byte of the file's data section."""

    file: Path
    start: int
    slot: Slot


class Artifact:
    """A complete and checked artifact, whose tensors are read one at a time.

    Attributes:
        path: folder of the artifact.
        manifest: its manifest.
        nbytes: size on disk of the manifest and of all files that it lists, in bytes.
    """

    def __init__(
        self, path: Path, manifest: Manifest, nbytes: int, homes: Mapping[str, Home]
    ) -> None:
        """Keep what ``open`` has checked; call ``open`` instead."""
        self.path = path
        self.manifest = manifest
        self.nbytes = nbytes
        self._homes = homes
        self._entries = {entry.name: entry for entry in manifest.tensors}

    @classmethod
    def open(cls, path: str | Path, *, adapter: str | None = None) -> Artifact:
        """Check the manifest, the size of every file and every header; read no tensor.

        Args:
            path: folder of the artifact.
            adapter: the adapter that must have made it; None allows any.

        Raises:
            ArtifactError: the artifact is missing, half-written, damaged, hostile or another
                adapter's.
        """
        path = Path(path)
        _check_finished(path)
        artifact = load(path)
        check_adapter(path, artifact.manifest.adapter, adapter)
        return artifact

    @staticmethod
    def is_artifact(path: str | Path) -> bool:
        """Whether ``path`` is an artifact, complete or half-written; a cheap check."""
        try:
            return any((Path(path) / name).is_file() for name in (MANIFEST_NAME, JOURNAL_NAME))
        except (OSError, ValueError):  # a name too long, or with a NUL: no path at all
            return False

    def names(self) -> tuple[str, ...]:
        """Names of the model's tensors, in storage order."""
        return tuple(self._entries)

    def entry(self, name: str) -> TensorEntry:
        """The manifest's entry of one tensor of the model.

        Raises:
            ArtifactError: there is no such tensor.
        """
        if name not in self._entries:
            raise ArtifactError(f"{self.path}: there is no tensor {shown(name)}")
        return self._entries[name]

    def read_parts(self, name: str) -> dict[str, Tensor]:
        """The stored tensors of ``name``: part name -> tensor; a kept tensor's part is ``""``.

        Raises:
            ArtifactError: no such tensor, or the file was cut or changed since it was opened.
        """
        entry = self.entry(name)
        stored = self.manifest.stored(entry)
        return {part[len(name) + 1 :]: self._read(self._homes[part]) for part in stored}

    def read_pq(self, name: str) -> PQTensor:
        """A quantized tensor, its codes in range and its codebooks and scales finite.

        Raises:
            ArtifactError: no such tensor, it is kept dense, or its values are impossible.
        """
        entry = self.entry(name)
        partition = self.manifest.partition(entry)
        if partition is None or entry.spec is None:
            raise ArtifactError(f"{self.path}: tensor {shown(name)} is kept dense, not quantized")
        parts = self.read_parts(name)
        try:
            spec = self.manifest.specs[entry.spec]
            return PQTensor.from_parts(partition, spec, entry.torch_dtype, parts)
        except ArtifactError as error:
            file = self._homes[f"{name}.codes"].file
            raise ArtifactError(f"{file}: tensor {shown(name)}: {one_line(error)}") from None

    def read(self, name: str) -> Tensor:
        """The dense tensor, decoded if it is quantized, in its original shape and dtype.

        Raises:
            ArtifactError: as ``read_parts`` and ``read_pq``.
        """
        if self.entry(name).spec is None:
            return self.read_parts(name)[""]
        return self.read_pq(name).decode()

    def problems(self, progress: Progress = silent) -> list[str]:
        """The problems of hashes, values and unlisted files, after reading every byte; or none."""
        return problems(self, progress)

    def verify(self, progress: Progress = silent) -> None:
        """Check every byte of the artifact.

        Raises:
            ArtifactError: the first of ``problems()``.
        """
        lines = self.problems(progress)
        if lines:
            more = f" (and {len(lines) - 1} more problems)" if len(lines) > 1 else ""
            raise ArtifactError(lines[0] + more)

    def _read(self, home: Home) -> Tensor:
        return header.read_tensor(home.file, home.start, home.slot)


def _check_finished(path: Path) -> None:
    partial = path.with_name(path.name + PARTIAL_SUFFIX) if path.name else path
    finish = Hint.of("finish it by compressing once more with {}", resume=True)
    try:
        if (path / JOURNAL_NAME).exists() or (path.name.endswith(PARTIAL_SUFFIX) and path.is_dir()):
            raise ArtifactError(f"{path}: is half-written", finish)
        if not path.exists() and partial.is_dir():
            raise ArtifactError(f"{path}: is half-written (see {partial})", finish)
        if not path.is_dir():
            raise ArtifactError(f"{path}: no such folder; an artifact is a folder with dpq.json")
        if not (path / MANIFEST_NAME).exists():
            raise ArtifactError(f"{path}: not a dpq artifact, it has no {MANIFEST_NAME}")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{shown(str(path))}: not a usable path ({one_line(error)})") from None


def load(path: Path) -> Artifact:
    """Open an artifact without the check that its folder is finished.

    Raises:
        ArtifactError: the artifact is damaged or hostile.
    """
    file, size = locate(path, MANIFEST_NAME)
    if size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{file}: {size} bytes are over the limit {MAX_MANIFEST_BYTES}")
    with reading(file), file.open("rb") as handle:
        manifest = Manifest.from_bytes(handle.read(size), str(file))
    return assemble(path, manifest, size)


def assemble(path: Path, manifest: Manifest, manifest_bytes: int) -> Artifact:
    """The artifact of a folder and a manifest, once all files agree with the manifest.

    Raises:
        ArtifactError: a file or header is not as the manifest says.
    """
    paths: dict[str, Path] = {}
    for name, entry in manifest.files.items():
        paths[name], actual = locate(path, name)
        if actual != entry.bytes:
            raise ArtifactError(
                f"{paths[name]}: is {actual} bytes, but the manifest says {entry.bytes}; "
                "it was cut or changed"
            )
    homes = _homes(path, manifest, paths)
    total = manifest_bytes + sum(entry.bytes for entry in manifest.files.values())
    return Artifact(path, manifest, total, homes)


def _homes(path: Path, manifest: Manifest, paths: Mapping[str, Path]) -> dict[str, Home]:
    """The place of every stored tensor, each exactly as the manifest promises."""
    where = str(path / MANIFEST_NAME)
    promised: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for entry in manifest.tensors:
        try:
            stored = manifest.stored(entry)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error}") from None
        if clash := [part for part in stored if part in promised]:
            raise ArtifactError(f"{where}: two tensors are stored as {shown(clash[0])}")
        promised.update(stored)
    homes: dict[str, Home] = {}
    for component, stem in manifest.weights.items():
        slots_of: dict[str, list[Slot]] = {}
        for name in shards.find_files(stem, manifest.files, where):
            file = paths[name]
            with reading(file):
                start, slots = header.read(file, manifest.files[name].bytes, len(promised))
            for slot in slots.values():
                full = f"{component}/{slot.name}" if component else slot.name
                _check_slot(file, full, slot, promised, homes)
                homes[full] = Home(file, start, slot)
            slots_of[name] = list(slots.values())
        if len(slots_of) > 1:
            _check_index(manifest, stem, paths, slots_of, where)
    if missing := set(promised) - set(homes):
        raise ArtifactError(f"{where}: tensor {shown(min(missing))} is in no weight file")
    return homes


def _check_slot(
    file: Path,
    name: str,
    slot: Slot,
    promised: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    homes: Mapping[str, Home],
) -> None:
    where = f"{file}: tensor {shown(slot.name)}"
    if name not in promised:
        raise ArtifactError(f"{where} is not in the manifest")
    if name in homes:
        raise ArtifactError(f"{where} is also in {homes[name].file.name}")
    dtype, shape = promised[name]
    if (slot.dtype, slot.shape) != (dtype, shape):
        raise ArtifactError(
            f"{where} is {slot.dtype} {shown(list(slot.shape))}, but the manifest makes it "
            f"{dtype} {shown(list(shape))} ({math.prod(shape) * dtype.itemsize} bytes)"
        )


def _check_index(
    manifest: Manifest,
    stem: str,
    paths: Mapping[str, Path],
    slots: Mapping[str, list[Slot]],
    where: str,
) -> None:
    """Check that the index, through which other libraries load, agrees with the headers."""
    name = stem + shards.INDEX_SUFFIX
    if name not in manifest.files:
        raise ArtifactError(f"{where}: lists several weight files but no {name}")
    path = paths[name]
    if manifest.files[name].bytes > header.MAX_HEADER_BYTES:
        raise ArtifactError(f"{path}: {manifest.files[name].bytes} bytes are too many")
    with reading(path), path.open("rb") as handle:
        index = strict_json.parse(handle.read(manifest.files[name].bytes), str(path))
    if index != shards.index_json(slots):
        raise ArtifactError(f"{path}: does not say what the headers of the weight files say")


def tensor_plan(artifact: Artifact, entry: TensorEntry) -> TensorPlan:
    """The plan of a stored tensor; whether its columns were reordered is not known."""
    manifest = artifact.manifest
    return TensorPlan(
        name=entry.name,
        info=TensorInfo(entry.shape, entry.torch_dtype),
        spec=None if entry.spec is None else manifest.specs[entry.spec],
        partition=manifest.partition(entry),
    )
