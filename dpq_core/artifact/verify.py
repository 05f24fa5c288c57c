"""Verification of an artifact: hashes, code ranges, finite values and unlisted files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Protocol

from torch import Tensor

from dpq_core.artifact import files
from dpq_core.artifact.entries import TensorEntry
from dpq_core.artifact.manifest import Manifest
from dpq_core.artifact.strict_json import shown
from dpq_core.errors import ArtifactError
from dpq_core.run import Progress
from dpq_core.tensor.pq_tensor import PQTensor

LOADED_SUFFIXES = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".py", ".json", ".jinja")
)
"""Suffixes of files that a library may load from the folder: weights, code, configuration."""


class Opened(Protocol):
    """The parts of an opened artifact that verification reads."""

    @property
    def path(self) -> Path:
        """The folder of the artifact."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the artifact."""

    def names(self) -> tuple[str, ...]:
        """Names of the model's tensors."""

    def entry(self, name: str) -> TensorEntry:
        """The manifest's entry of one tensor."""

    def read_parts(self, name: str) -> dict[str, Tensor]:
        """The stored tensors of one tensor of the model."""

    def read_pq(self, name: str) -> PQTensor:
        """A quantized tensor, its values checked."""


def problems(artifact: Opened, progress: Progress) -> list[str]:
    """The problems of an artifact, one line each, after reading every byte.

    Progress counts bytes, those of weight files twice (hash and values).
    """
    listed = artifact.manifest.files
    total = 2 * sum(entry.bytes for entry in listed.values())
    lines: list[str] = []
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress("verify", done, total)

    for name, entry in listed.items():
        try:
            path, _ = files.locate(artifact.path, name)
            with files.reading(path):
                sha256 = files.hash_file(path, tick)
        except ArtifactError as error:
            lines.append(str(error))
            continue
        if sha256 != entry.sha256:
            lines.append(f"{path}: its sha256 is {sha256}, the manifest says {entry.sha256}")
    for name in artifact.names():
        try:
            if artifact.entry(name).spec is None:
                parts = artifact.read_parts(name)
            else:
                parts = artifact.read_pq(name).parts()
            tick(sum(part.nbytes for part in parts.values()))
        except ArtifactError as error:
            lines.append(str(error))
    lines.extend(_unlisted(artifact))
    progress("verify", total, total)
    return lines


def _unlisted(artifact: Opened) -> list[str]:
    """Files that a library might load although the manifest does not list them."""
    listed = {*artifact.manifest.files, files.MANIFEST_NAME}
    return [
        f"{artifact.path / name}: {shown(name)} is not in the manifest, yet a library might load "
        "it; remove it"
        for name in sorted(files.walk(artifact.path))
        if name not in listed
        and not name.startswith(".")  # .git, .cache of the hub: no library loads from there
        and PurePosixPath(name).suffix.lower() in LOADED_SUFFIXES
    ]
