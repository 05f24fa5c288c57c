"""Calibration of a whole artifact: the order of the steps.

Open student and teacher -> calibrate -> write. Further processes of a launcher share the batches;
only the first process writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpq_core.calibrate.distributed import Workers, join
from dpq_core.calibrate.loop import Saving, calibrate
from dpq_core.calibrate.report import CalibrateReport
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.data.task import CalibrationTask
from dpq_core.device import resolve
from dpq_core.errors import ANY, CONTINUE, ArtifactError, Hint, SourceError
from dpq_core.jobs.calibrated_artifact import CalibratedArtifact, open_calibrated
from dpq_core.jobs.report import Report, Table, facts
from dpq_core.plugin.adapter import Adapter, Calibrates, lacks
from dpq_core.run import Run
from dpq_core.sizes import format_seconds, format_size

STATE_SUFFIX = ".calibration"
"""Suffix of the folder that holds the state of an unfinished run: ``<out>.calibration``."""


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Options of ``calibrate_artifact``.

    Attributes:
        settings: settings of the loop.
        baseline: the uncompressed source; None for the one that the artifact names.
        resume: continue an interrupted run of the same command.
        overwrite: replace the output, and start over where there is something to resume.
        adapter: an instance of ``Adapter.options["calibrate"]``; None for its defaults.
    """

    settings: CalibrateSettings = dataclasses.field(default_factory=CalibrateSettings)
    baseline: str | None = None
    resume: bool = False
    overwrite: bool = False
    adapter: Any = None


@dataclass(frozen=True, kw_only=True)
class Calibrated(Report):
    """The result of calibrating an artifact.

    Attributes:
        artifact: path of the new artifact.
        report: report of the loop.
        nbytes_before: size of the old artifact on disk in bytes.
        nbytes: size of the new artifact on disk in bytes.
        writer: whether this process has written it; False in all but one.
    """

    artifact: Path
    report: CalibrateReport
    nbytes_before: int
    nbytes: int
    writer: bool = True

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with those of the table."""
        return {
            "artifact": str(self.artifact),
            "nbytes_before": self.nbytes_before,
            "nbytes": self.nbytes,
            "recovered": self.report.recovered,
            "codes_changed": self.report.changed,
            "codewords_revived": self.report.revived,
            "dead": self.report.dead,
            **dataclasses.asdict(self.report),
        }

    def tables(self) -> tuple[Table, ...]:
        """A table of losses, steps, codes and sizes."""
        report = self.report
        share = "nothing was lost" if report.recovered is None else f"{report.recovered:.1%}"
        tried = [e for e in report.esteps if e.what == "codes"]
        kept = sum(e.kept for e in tried)
        blocks = [e for e in report.esteps if e.what == "candidates"]
        better = [e for e in blocks if e.kept]
        by_candidates = (
            f"{sum(e.changed for e in better):,} codes, {len(better)} of {len(blocks)} blocks kept"
        )
        return (
            facts(
                str(self.artifact),
                ("loss", report.loss),
                ("before", f"{report.before:.5g}"),
                ("after", f"{report.after:.5g}"),
                ("uncompressed", f"{report.baseline:.5g}"),
                ("recovered", share),
                ("training steps", f"{report.steps:,}"),
                ("codes changed", f"{report.changed:,} ({kept} of {len(tried)} E-steps kept)"),
                *([("by candidates", by_candidates)] if blocks else []),
                ("codewords", f"{report.dead:.2%} unused, {report.revived:,} revived"),
                ("size before", format_size(self.nbytes_before)),
                ("size after", f"{format_size(self.nbytes)} on disk, every file counted"),
                ("time", format_seconds(report.seconds)),
            ),
        )


def calibrate_artifact(
    adapter: Adapter,
    source: Path,
    out: Path,
    options: CalibrateOptions | None = None,
    run: Run | None = None,
) -> Calibrated:
    """Calibrate an artifact against its uncompressed source and write the result.

    Raises:
        AdapterError: the adapter cannot calibrate.
        SourceError: the uncompressed source cannot be opened, or is another model.
        ArtifactError: the output is in the way, an earlier run was not finished, or the state of
            another run lies there.
        SpecError: loss or gradient are not finite.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    options, run = options or CalibrateOptions(), run or Run()
    if not isinstance(adapter, Calibrates):
        raise lacks(adapter, "calibrate")
    if options.adapter is None:
        options = dataclasses.replace(options, adapter=adapter.default_options("calibrate"))
    opened = open_calibrated(adapter, source)
    with _processes(run):
        workers = Workers()
        saving = _saving(opened, out, options, run)
        workers.wait()
        task = _open(adapter, opened, options, run)
        report = calibrate(
            task,
            options.settings,
            checkpoint=opened.originals(),
            dtypes=opened.dtypes(task),
            saving=saving,
            run=run if workers.rank == 0 else dataclasses.replace(run, progress=Run().progress),
        )
        if workers.rank == 0:
            opened.write(out, task, overwrite=options.overwrite or options.resume, run=run)
            shutil.rmtree(saving.folder, ignore_errors=True)
        workers.wait()
    return Calibrated(
        artifact=out,
        report=report,
        nbytes_before=opened.artifact.nbytes,
        nbytes=open_calibrated(adapter, out).artifact.nbytes,
        writer=workers.rank == 0,
    )


def _saving(opened: CalibratedArtifact, out: Path, options: CalibrateOptions, run: Run) -> Saving:
    """The place of this run's state, after a check that nothing is in the way."""
    opened.check_output(out, overwrite=options.overwrite, resume=options.resume)
    folder = out.with_name(out.name + STATE_SUFFIX)
    if folder.exists() and not (options.overwrite or options.resume):
        raise ArtifactError(f"{folder}: an earlier run was not finished", CONTINUE)
    deciding = [repr(opened.artifact.manifest), options.baseline, repr(options.adapter), run.seed]
    identity = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()
    return Saving(folder=folder, resume=options.resume, identity=identity)


def _open(
    adapter: Calibrates[Any], opened: CalibratedArtifact, options: CalibrateOptions, run: Run
) -> CalibrationTask:
    """The task of student and data; opens the uncompressed model first."""
    artifact = opened.artifact
    baseline = options.baseline or artifact.manifest.source
    try:
        opened.open_baseline(baseline)
        return adapter.calibration(str(artifact.path), baseline, options.adapter, run)
    except SourceError as error:
        if options.baseline is not None:
            raise
        raise SourceError(
            f"the uncompressed model is needed, and the artifact says that it is {baseline}: "
            f"{error}",
            Hint.of("if it is elsewhere now, say where with {}", baseline=ANY),
        ) from None


@contextmanager
def _processes(run: Run) -> Iterator[None]:
    """Within the ``with`` block, this process is joined with the others of its launcher."""
    joined = join(resolve(run.device))
    try:
        yield
    finally:
        if joined:
            torch.distributed.destroy_process_group()
