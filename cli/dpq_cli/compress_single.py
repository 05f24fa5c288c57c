"""``dpq compress`` and ``dpq inspect`` for artifacts that are one file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dpq_cli import recipe, render
from dpq_cli.shared import adapter_options
from dpq_cli.sizes import format_seconds, format_size
from dpq_core.errors import SpecError

if TYPE_CHECKING:
    from dpq_cli.spec_options import SpecChoice
    from dpq_core.artifact import ArtifactFile
    from dpq_core.artifact.single_manifest import FileManifest
    from dpq_core.jobs.compress_file import FileReport
    from dpq_core.plugin.adapter import Adapter
    from dpq_core.run import Run

COLUMNS = ("attribute", "shape", ">bits/item", ">size", "error")


TOGETHER = ("preset", "target_size")
"""Those of the options about tensors that mean something for a file, too."""


@dataclass(frozen=True)
class Asked:
    """What is to be made of a source.

    Attributes:
        adapter: one with ``single_file``.
        own: its options.
        budget: bytes of the file, None where no number was given.
    """

    adapter: Adapter
    own: Any
    budget: int | None

    @classmethod
    def of(
        cls, ctx: typer.Context, adapter: Adapter, choice: SpecChoice, given: tuple[str, ...]
    ) -> Asked:
        """From the command line; the adapter has presets of its own.

        Raises:
            SpecError: ``given`` has options that set how tensors are cut, and there are none.
        """
        if set(given) - set(TOGETHER):
            raise SpecError(
                f"adapter {adapter.name!r} has no weights to set --bits and the like for; its own "
                f"options: `dpq adapters {adapter.name}`"
            )
        preset = [] if choice.preset is None else ["--preset", choice.preset]
        own = adapter_options(
            adapter, "compress", [*preset, *recipe.words(ctx, adapter, "compress")]
        )
        return cls(adapter, own, choice.target_bytes)


def run(asked: Asked, source: str, out: Path, how: dict[str, Any], run: Run, as_json: bool) -> None:
    """Compress and report; ``how`` are further arguments of ``compress_file``."""
    from dpq_core.jobs.compress_file import compress_file

    report = compress_file(
        asked.adapter, source, out, options=asked.own, budget=asked.budget, **how, run=run
    )
    if as_json:
        render.emit_json(report_json(report))
        return
    manifest = report.manifest
    render.table("", COLUMNS, _rows(manifest, report.nbytes))
    for note in report.notes:
        render.note(note)
    render.facts(
        str(report.artifact or f"{out} (dry run: nothing is written)"),
        [
            ("items", f"{manifest.items:,}"),
            ("values before", format_size(report.source_nbytes)),
            *([("budget", format_size(report.budget))] if report.budget is not None else []),
            ("size after", f"{format_size(report.nbytes)} on disk, every byte counted"),
            ("ratio", f"{report.source_nbytes / report.nbytes:.2f}x smaller"),
            ("bytes per item", f"{report.nbytes / manifest.items:.2f}"),
            ("time", format_seconds(report.seconds)),
            ("peak memory", format_size(report.peak_memory)),
        ],
    )


def report_json(report: FileReport) -> dict[str, Any]:
    """The report with the ratios that the closing table shows."""
    return {
        "artifact": None if report.artifact is None else str(report.artifact),
        "items": report.manifest.items,
        "source_items": report.manifest.source_items,
        "source_nbytes": report.source_nbytes,
        "nbytes": report.nbytes,
        "budget": report.budget,
        "ratio": report.source_nbytes / report.nbytes,
        "bits_per_item": 8 * report.nbytes / report.manifest.items,
        "seconds": report.seconds,
        "peak_memory": report.peak_memory,
        "notes": list(report.notes),
        "attributes": _attributes(report.manifest),
    }


def examine(file: ArtifactFile) -> dict[str, Any]:
    """All that is known without decoding, as JSON values; sizes in bytes."""
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
        "attributes": _attributes(manifest),
        "streams": {name: stream.bytes for name, stream in manifest.streams.items()},
    }


def inspect(file: ArtifactFile, *, verify: bool, run: Run, as_json: bool) -> None:
    """Show a file; with ``verify``, read every byte first.

    Raises:
        ArtifactError: a hash differs.
    """
    if verify:
        file.verify(run.progress)
    found = examine(file)
    if as_json:
        render.emit_json(found | ({"verified": {"hashes": "match"}} if verify else {}))
        return
    render.facts(
        found["path"],
        [
            ("adapter", found["adapter"]),
            ("source", found["source"]),
            ("size", f"{format_size(found['nbytes'])} on disk"),
            ("items", f"{found['items']:,} of {found['source_items']:,}"),
            ("chunks", found["chunks"]),
            ("bits per item", f"{found['bits_per_item']:.2f}"),
            ("written by", ", ".join(f"{k} {v}" for k, v in found["versions"].items())),
        ],
    )
    render.table("", COLUMNS, _rows(file.manifest, file.nbytes))
    if verify:
        render.note(f"verified: the hashes of {len(found['streams'])} streams match")


def _attributes(manifest: FileManifest) -> list[dict[str, Any]]:
    return [
        {
            **dataclasses.asdict(attribute),
            "nbytes": manifest.attribute_bytes(attribute),
            "bits_per_item": 8 * manifest.attribute_bytes(attribute) / max(1, manifest.items),
        }
        for attribute in manifest.attributes
    ]


def _rows(manifest: FileManifest, nbytes: int) -> list[tuple[object, ...]]:
    """The attributes, and what belongs to none of them."""
    rows: list[tuple[object, ...]] = []
    left = nbytes
    for found in _attributes(manifest):
        left -= found["nbytes"]
        errors = ", ".join(f"{name} {value:.3g}" for name, value in found["errors"].items())
        shape = "x".join(map(str, found["shape"])) or "number"
        bits = f"{found['bits_per_item']:.2f}"
        rows.append((found["name"], shape, bits, format_size(found["nbytes"]), errors or None))
    bits = f"{8 * left / max(1, manifest.items):.2f}"
    return [*rows, ("(models, index, header)", None, bits, format_size(left), None)]
