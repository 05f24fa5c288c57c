"""``dpq inspect``: what is in an artifact, and whether it is whole."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli import compress_single, render
from dpq_cli.shared import Device, Json, open_artifact, using
from dpq_cli.sizes import format_size
from dpq_core.errors import ArtifactError
from dpq_core.plugin import registry
from dpq_core.spec import QuantSpec

if TYPE_CHECKING:
    from dpq_core.artifact import Artifact, Manifest
    from dpq_core.artifact.entries import TensorEntry
    from dpq_core.jobs.probe import ProbeResult


def command(
    path: Annotated[Path, typer.Argument(help="An artifact.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every hash, then the stored probe outputs.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show sizes, true bits per weight, specs, errors and versions of an artifact."""
    from dpq_cli.meter import Meter
    from dpq_core.artifact import Artifact
    from dpq_core.run import Run

    artifact = open_artifact(str(path))
    if not isinstance(artifact, Artifact):
        with Meter() as meter:
            shown = Run(device=device, progress=meter)
            compress_single.inspect(artifact, verify=verify, run=shown, as_json=as_json)
        return
    checked = _verify(artifact, device) if verify else None
    found = examine(artifact)
    if as_json:
        render.emit_json(found | ({} if checked is None else {"verified": checked}))
        return
    _show(found, tensors=tensors)
    if checked is not None:
        render.note("verified: " + "; ".join(f"{what} {how}" for what, how in checked.items()))


def examine(artifact: Artifact) -> dict[str, Any]:
    """All that is known without loading the model, as JSON values; sizes in bytes."""
    manifest = artifact.manifest
    weights = sum(math.prod(entry.shape) for entry in manifest.tensors)
    return {
        "path": str(artifact.path),
        "format_version": manifest.format_version,
        "adapter": manifest.adapter,
        "source": manifest.source,
        "versions": dict(manifest.versions),
        "weights": weights,
        "nbytes": artifact.nbytes,
        "bits_per_weight": 8 * artifact.nbytes / max(1, weights),
        "ratio_16_bit": 2 * weights / artifact.nbytes,
        "ratio_32_bit": 4 * weights / artifact.nbytes,
        "specs": [spec.to_json() for spec in manifest.specs],
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "tensors": [_tensor(manifest, entry) for entry in manifest.tensors],
    }


def _tensor(manifest: Manifest, entry: TensorEntry) -> dict[str, Any]:
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


def _verify(artifact: Artifact, device: str) -> dict[str, str]:
    """What was checked -> the outcome.

    Raises:
        ArtifactError: a hash differs, or the loaded model does not give the stored outputs.
    """
    from dpq_core.jobs.probe import check_probe

    adapter = registry.load(artifact.manifest.adapter)
    with using(adapter, device=device) as run:
        artifact.verify(run.progress)
        result: ProbeResult | None = check_probe(adapter, artifact, run)
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


def _show(found: dict[str, Any], *, tensors: bool) -> None:
    quantized = [t for t in found["tensors"] if t["relative_error"] is not None]
    errors = [t["relative_error"] for t in quantized]
    rows: list[tuple[str, object]] = [
        ("adapter", found["adapter"]),
        ("source", found["source"]),
        ("size", f"{format_size(found['nbytes'])} on disk, {len(found['files']) + 1} files"),
        ("weights", f"{found['weights']:,}"),
        ("true bits per weight", f"{found['bits_per_weight']:.3f}"),
        ("against 16 bits", f"{found['ratio_16_bit']:.2f}x smaller"),
        ("against 32 bits", f"{found['ratio_32_bit']:.2f}x smaller"),
        ("quantized", f"{len(quantized)} of {len(found['tensors'])} tensors"),
    ]
    if errors:
        mean = sum(errors) / len(errors)
        rows.append(("relative error", f"mean {mean:.4f}, worst {max(errors):.4f}"))
    rows += [(f"spec {i}", _spec(spec)) for i, spec in enumerate(found["specs"])]
    rows.append(("written by", ", ".join(f"{k} {v}" for k, v in found["versions"].items())))
    render.facts(found["path"], rows)
    if tensors:
        columns = ("tensor", "shape", "spec", ">bits/weight", ">relative error", ">size")
        render.table("", columns, map(_tensor_row, found["tensors"]))


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
    """The fields that differ from the defaults, d and K first."""
    defaults = dataclasses.asdict(QuantSpec()) | {k: spec[k] for k in ("version", "d", "K")}
    changed = {k: v for k, v in spec.items() if v != defaults[k]}
    return " ".join(f"{k}={v}" for k, v in {"d": spec["d"], "K": spec["K"], **changed}.items())
