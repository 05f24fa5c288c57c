"""Stage 1 of adapters whose artifacts are one file: pack, write, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpq_core.artifact.single_manifest import FileManifest
from dpq_core.artifact.single_writer import check_output, complete, size_of, write
from dpq_core.jobs.compress import peak_memory
from dpq_core.kernels.cpu.openmp import short_spins
from dpq_core.plugin.adapter import Adapter
from dpq_core.run import Run


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What became of the source.

    Attributes:
        artifact: where it is; None after a dry run.
        manifest: sizes, specs and errors by attribute.
        source_nbytes: bytes of the source's values.
        nbytes: bytes of the file.
        budget: bytes that were allowed, None where no number was given.
        seconds: wall time.
        peak_memory: highest resident memory of this process in bytes.
        notes: what was done beyond quantizing.
    """

    artifact: Path | None
    manifest: FileManifest
    source_nbytes: int
    nbytes: int
    budget: int | None
    seconds: float
    peak_memory: int
    notes: tuple[str, ...]


@short_spins()
def compress_file(
    adapter: Adapter,
    source: str,
    out: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    options: Any = None,
    budget: int | None = None,
    run: Run | None = None,
) -> FileReport:
    """Code a source into one file, which appears when it is whole.

    Args:
        adapter: one with ``single_file``.
        source: what it opens.
        out: the file.
        overwrite: replace an artifact there.
        dry_run: do everything but write.
        options: an instance of ``Adapter.options["compress"]``; None for its defaults.
        budget: bytes that the file may have; None for what the options give.
        run: device, seed and progress.

    Raises:
        SourceError: the source cannot be read, or holds values that cannot be coded.
        SpecError: the options do not fit the source, or the budget is too small.
        ArtifactError: the output is in the way or cannot be written.
    """
    started = time.perf_counter()
    if not dry_run:
        check_output(out, overwrite=overwrite)
    run = run or Run()
    if budget is None:
        packed = adapter.pack(source, options, run)
    else:
        packed = adapter.pack_within(source, options, budget, run)
    manifest, contents = complete(packed)
    if dry_run:
        nbytes = size_of(packed)
    else:
        nbytes = write(out, manifest, contents, overwrite=overwrite).nbytes
    return FileReport(
        artifact=None if dry_run else out,
        manifest=manifest,
        source_nbytes=packed.source_nbytes,
        nbytes=nbytes,
        budget=budget,
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(),
        notes=packed.notes,
    )
