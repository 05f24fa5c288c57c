"""The plan by which the tensors of a finished artifact were stored."""

from __future__ import annotations

from dpq_core.artifact import Artifact
from dpq_core.artifact.entries import TensorEntry
from dpq_core.checkpoint import TensorInfo
from dpq_core.plan import TensorPlan


def planned(artifact: Artifact, entry: TensorEntry) -> TensorPlan:
    """The plan of one tensor; whether its columns were reordered is not known from it."""
    manifest = artifact.manifest
    return TensorPlan(
        name=entry.name,
        info=TensorInfo(entry.shape, entry.torch_dtype),
        spec=None if entry.spec is None else manifest.specs[entry.spec],
        partition=manifest.partition(entry),
    )
