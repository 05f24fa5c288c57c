"""Bytes of an artifact besides its tensors: headers, manifest, side and generated files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dpq_core.artifact import FileEntry, shards
from dpq_core.artifact.manifest import draft

if TYPE_CHECKING:
    from dpq_core.planning.policy import TensorPolicy
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.plan import Plan

_HASH = "0" * 64
_ERROR = 1.2345678901234567e-05
"""A relative error whose text is as long as any."""

_ENTRY = FileEntry(10**9, _HASH)


def overhead(
    checkpoint: Checkpoint, adapter: TensorPolicy, plan: Plan, shard_bytes: int = shards.SHARD_BYTES
) -> int:
    """Bytes of the artifact of a plan besides its tensors and a probe.

    The manifest holds numbers that are not known yet, so that it becomes a few bytes per tensor
    shorter.
    """
    weights = adapter.weights_names(checkpoint)
    laid_out = shards.lay_out(plan, weights, shard_bytes)
    manifest = draft(
        plan, adapter=adapter.name, source=checkpoint.source, fingerprint=_HASH, weights=weights
    )
    errors = tuple(
        replace(entry, relative_error=None if entry.spec is None else _ERROR)
        for entry in manifest.tensors
    )
    names = {shard.file for shard in laid_out} | set(checkpoint.side_files)
    manifest = replace(manifest, tensors=errors, files=dict.fromkeys(names, _ENTRY))
    generated = adapter.generated_files(checkpoint, manifest)
    manifest = replace(manifest, files=dict.fromkeys(names | set(generated), _ENTRY))
    parts = [
        len(manifest.to_bytes()),
        sum(len(shard.header) for shard in laid_out),
        sum(path.stat().st_size for path in checkpoint.side_files.values()),
        sum(len(content) for content in generated.values()),
    ]
    if len(laid_out) > len(weights):  # an index names every stored tensor and its file
        parts.append(sum(len(name) + 64 for tensor in plan for name in tensor.stored()))
    return sum(parts)
