"""Artifacts: safetensors and a manifest, written atomically, read with every check (FORMAT.md)."""

from dpq_core.artifact.entries import DataEntry, FileEntry, TensorEntry
from dpq_core.artifact.files import MANIFEST_NAME
from dpq_core.artifact.manifest import FORMAT_VERSION, Manifest
from dpq_core.artifact.reader import Artifact
from dpq_core.artifact.single import ArtifactFile
from dpq_core.artifact.writer import ArtifactWriter

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "Artifact",
    "ArtifactFile",
    "ArtifactWriter",
    "DataEntry",
    "FileEntry",
    "Manifest",
    "TensorEntry",
]
