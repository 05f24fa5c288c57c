"""Compression of a source into a single file: pack, write, report."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpq_core.artifact.single_manifest import FileManifest
from dpq_core.artifact.single_writer import check_output, complete, size_of, write
from dpq_core.jobs.compress import peak_memory
from dpq_core.jobs.report import Report, Table, facts
from dpq_core.kernels.cpu.openmp import short_spins
from dpq_core.plugin.adapter import FileAdapter, PacksWithin, lacks
from dpq_core.run import Run
from dpq_core.sizes import format_seconds, format_size


@dataclass(frozen=True, kw_only=True)
class FileReport(Report):
    """The result of coding a source into one file.

    Attributes:
        output: path of the output.
        artifact: path of the file; None after a dry run.
        manifest: sizes, specs and errors by attribute.
        source_nbytes: size of the source's values in bytes.
        nbytes: size of the file in bytes.
        budget: allowed size in bytes; None where none was given.
        seconds: wall time.
        peak_memory: highest resident memory of this process in bytes.
        notes: lines on what was done besides quantizing.
    """

    output: Path
    artifact: Path | None
    manifest: FileManifest
    source_nbytes: int
    nbytes: int
    budget: int | None
    seconds: float
    peak_memory: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with the ratios of the table."""
        return {
            "artifact": None if self.artifact is None else str(self.artifact),
            "items": self.manifest.items,
            "source_items": self.manifest.source_items,
            "source_nbytes": self.source_nbytes,
            "nbytes": self.nbytes,
            "budget": self.budget,
            "ratio": self.source_nbytes / self.nbytes,
            "bits_per_item": 8 * self.nbytes / self.manifest.items,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "notes": list(self.notes),
            "attributes": attributes_json(self.manifest),
        }

    def tables(self) -> tuple[Table, ...]:
        """A table of the attributes, and one of the totals."""
        items = self.manifest.items
        return (
            attribute_table(self.manifest, self.nbytes),
            facts(
                str(self.artifact or f"{self.output} (dry run: nothing is written)"),
                ("items", f"{items:,}"),
                ("values before", format_size(self.source_nbytes)),
                *([] if self.budget is None else [("budget", format_size(self.budget))]),
                ("size after", f"{format_size(self.nbytes)} on disk, every byte counted"),
                ("ratio", f"{self.source_nbytes / self.nbytes:.2f}x smaller"),
                ("bytes per item", f"{self.nbytes / items:.2f}"),
                ("time", format_seconds(self.seconds)),
                ("peak memory", format_size(self.peak_memory)),
            ),
        )

    def remarks(self) -> tuple[str, ...]:
        """Lines on what was done besides quantizing."""
        return self.notes


def attributes_json(manifest: FileManifest) -> list[dict[str, Any]]:
    """The attributes of a file with their bytes, as plain JSON values."""
    return [
        {
            **dataclasses.asdict(attribute),
            "nbytes": manifest.attribute_bytes(attribute),
            "bits_per_item": 8 * manifest.attribute_bytes(attribute) / max(1, manifest.items),
        }
        for attribute in manifest.attributes
    ]


def attribute_table(manifest: FileManifest, nbytes: int) -> Table:
    """A table of the attributes of a file, and of the bytes that belong to none of them."""
    rows: list[tuple[object, ...]] = []
    left = nbytes
    for attribute in attributes_json(manifest):
        left -= attribute["nbytes"]
        errors = ", ".join(f"{name} {value:.3g}" for name, value in attribute["errors"].items())
        shape = "x".join(map(str, attribute["shape"])) or "number"
        bits = f"{attribute['bits_per_item']:.2f}"
        size = format_size(attribute["nbytes"])
        rows.append((attribute["name"], shape, bits, size, errors or None))
    bits = f"{8 * left / max(1, manifest.items):.2f}"
    rows.append(("(models, index, header)", None, bits, format_size(left), None))
    return Table("", ("attribute", "shape", ">bits/item", ">size", "error"), tuple(rows))


@short_spins()
def compress_file(
    adapter: FileAdapter[Any],
    source: str,
    out: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    options: Any = None,
    budget: int | None = None,
    run: Run | None = None,
) -> FileReport:
    """Code a source into one file, which appears when it is complete.

    Args:
        adapter: adapter of the source's domain.
        source: the source, as the adapter opens it.
        out: path of the file.
        overwrite: replace an artifact there.
        dry_run: do everything except writing.
        options: an instance of ``Adapter.options["compress"]``; None for its defaults.
        budget: largest size of the file in bytes; None for the size that the options give.
        run: device, seed and progress.

    Raises:
        AdapterError: the adapter cannot fit a file to a budget.
        SourceError: the source cannot be read, or holds values that cannot be coded.
        SpecError: the options do not fit the source, or the budget is too small.
        ArtifactError: the output is in the way or cannot be written.
    """
    started = time.perf_counter()
    if not dry_run:
        check_output(out, overwrite=overwrite)
    run = run or Run()
    if options is None:
        options = adapter.default_options("compress")
    if budget is None:
        packed = adapter.pack(source, options, run)
    elif isinstance(adapter, PacksWithin):
        packed = adapter.pack_within(source, options, budget, run)
    else:
        raise lacks(adapter, "fit a file to a number of bytes")
    manifest, contents = complete(packed)
    if dry_run:
        nbytes = size_of(packed)
    else:
        nbytes = write(out, manifest, contents, overwrite=overwrite).nbytes
    return FileReport(
        output=out,
        artifact=None if dry_run else out,
        manifest=manifest,
        source_nbytes=packed.source_nbytes,
        nbytes=nbytes,
        budget=budget,
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(),
        notes=packed.notes,
    )
