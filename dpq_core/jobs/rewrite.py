"""Rewriting of an artifact: the same tensors, specs and files, with other values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dpq_core.artifact import (
    MANIFEST_NAME,
    Artifact,
    ArtifactWriter,
    DataEntry,
    TensorEntry,
    shards,
)
from dpq_core.artifact.entries import MAX_DATA
from dpq_core.artifact.files import PARTIAL_SUFFIX
from dpq_core.artifact.reader import tensor_plan
from dpq_core.errors import CONTINUE, REPLACE, ArtifactError
from dpq_core.jobs.hidden_match import aligned
from dpq_core.jobs.probe import PROBE_NAME, store_probe
from dpq_core.plugin.adapter import TensorAdapter
from dpq_core.run import Run
from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.plan import Plan
from dpq_core.tensor.pq_tensor import PQTensor

Replacement = PQTensor | Tensor
"""The new value of a quantized tensor, or of a kept one."""


def check_output(out: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Refuse an output folder that is in the way, before any work is done.

    Args:
        out: the folder.
        overwrite: whether it may be replaced.
        resume: whether a half-written output may be replaced.

    Raises:
        ArtifactError: ``out`` exists and is not to be replaced, or is no artifact.
    """
    partial = out.with_name(out.name + PARTIAL_SUFFIX)
    if out.exists() and not (out.is_dir() and (out / MANIFEST_NAME).is_file()):
        if not out.is_dir() or any(out.iterdir()):
            raise ArtifactError(f"{out}: exists and is not a dpq artifact; choose another name")
        return
    if out.exists() and not overwrite:
        raise ArtifactError(f"{out}: exists already", REPLACE)
    if partial.exists() and not (overwrite or resume):
        raise ArtifactError(f"{partial}: an earlier run was not finished", CONTINUE)


def rewrite(
    adapter: TensorAdapter[Any],
    artifact: Artifact,
    out: Path,
    replaced: Callable[[str], Replacement | None],
    *,
    baseline: Checkpoint | None = None,
    data: Iterable[DataEntry] = (),
    overwrite: bool = False,
    run: Run | None = None,
) -> Artifact:
    """Write an artifact again at ``out``, with some tensors replaced.

    Names, specs, sizes and side files stay; relative errors are measured anew where the original
    weights are given, and are unknown otherwise; the probe is run anew.

    Args:
        adapter: adapter of the artifact.
        artifact: the old one.
        out: folder of the new one; may be that of the old one with ``overwrite``.
        replaced: name of a tensor -> its new value, or None to keep the old one.
        baseline: the original weights.
        data: what was read to make the new values, for the manifest, after what it says already.
        overwrite: replace an artifact at ``out``.
        run: device and seed of the probe.

    Raises:
        ArtifactError: the output is in the way or cannot be written, or a value has another shape
            than the one it replaces.
    """
    run, manifest = run or Run(), artifact.manifest
    plan = Plan(tuple(tensor_plan(artifact, entry) for entry in manifest.tensors))
    writer = ArtifactWriter(
        out,
        plan,
        adapter=manifest.adapter,
        source=manifest.source,
        fingerprint=hashlib.sha256(f"rewritten {manifest.fingerprint}".encode()).hexdigest(),
        weights=manifest.weights,
        data=[*manifest.data, *data][-MAX_DATA:],
        shard_bytes=_shard_bytes(artifact),
        overwrite=overwrite,
    )
    weights = None if baseline is None else aligned(adapter, baseline, artifact)
    with writer:
        for entry in manifest.tensors:
            parts, error = _value(artifact, entry, replaced(entry.name), weights)
            writer.write(entry.name, parts, error)
        generated: Mapping[str, bytes] = {}
        if baseline is not None:
            generated = adapter.generated_files(baseline, writer.manifest_draft)
        for relative in manifest.files:
            rewritten = relative == PROBE_NAME or _is_weights(artifact, relative)
            if not rewritten and relative not in generated:
                writer.add_file(relative, artifact.path / relative)
        for relative, content in generated.items():
            writer.add_file(relative, content)
        if PROBE_NAME in manifest.files:
            store_probe(adapter, writer, run)
        return writer.finish()


def _value(
    artifact: Artifact, entry: TensorEntry, new: Replacement | None, baseline: Checkpoint | None
) -> tuple[dict[str, Tensor], float | None]:
    """The stored tensors of one tensor of the model, and its relative error where it is known."""
    if new is None:
        old = artifact.read_parts(entry.name)
        stored = {f"{entry.name}.{part}" if part else entry.name: v for part, v in old.items()}
        return stored, entry.relative_error
    if isinstance(new, Tensor):
        return {entry.name: new.detach().to("cpu", entry.torch_dtype).contiguous()}, None
    stored = {f"{entry.name}.{part}": value.cpu() for part, value in new.parts().items()}
    if baseline is None or entry.name not in baseline.tensors:
        return stored, None
    weight = baseline.read(entry.name).float()
    difference = (weight - new.decode(weight.dtype).cpu()).double().square().sum()
    power = weight.double().square().sum()
    return stored, float(difference / power) if power else 0.0


def _is_weights(artifact: Artifact, relative: str) -> bool:
    """Whether a file holds weights or their index, which the writer writes."""
    return shards.is_weights(artifact.manifest.weights, relative)


def _shard_bytes(artifact: Artifact) -> int:
    """The size of the largest weight file in bytes: a single file stays a single file."""
    files = artifact.manifest.files
    return max((e.bytes for n, e in files.items() if _is_weights(artifact, n)), default=1)
