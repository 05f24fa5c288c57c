"""Stage 2 of a whole artifact: the one file that knows the order of the steps.

student and teacher -> calibrate -> write. Further processes of a launcher help with the batches;
only the first one writes.
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

from dpq_core.artifact import Artifact, ArtifactFile, single_writer
from dpq_core.calibrate.distributed import Workers, join
from dpq_core.calibrate.layers import quantized_layers
from dpq_core.calibrate.loop import Saving, calibrate
from dpq_core.calibrate.report import CalibrateReport
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.data.task import CalibrationTask
from dpq_core.device import resolve
from dpq_core.errors import ANY, CONTINUE, AdapterError, ArtifactError, Hint, SourceError
from dpq_core.jobs.hidden_match import aligned
from dpq_core.jobs.report import Report, Table, facts
from dpq_core.jobs.rewrite import Replacement, check_output, rewrite
from dpq_core.plugin.adapter import Adapter
from dpq_core.run import Run
from dpq_core.sizes import format_seconds, format_size
from dpq_core.tensor.checkpoint import Checkpoint

STATE_SUFFIX = ".calibration"
"""``<out>.calibration`` holds the state of an unfinished run."""


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """How an artifact is calibrated.

    Attributes:
        settings: of the loop.
        baseline: the uncompressed source; None is the one that the artifact was made of.
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
    """A calibrated artifact.

    Attributes:
        artifact: where it is.
        report: what the loop did.
        nbytes_before: bytes on disk of the artifact that came in.
        nbytes: bytes on disk of the new one.
        writer: whether this process has written it; False in all but one.
    """

    artifact: Path
    report: CalibrateReport
    nbytes_before: int
    nbytes: int
    writer: bool = True

    def to_json(self) -> dict[str, Any]:
        """The report with what the table shows."""
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
        """Losses, steps, codes and sizes."""
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
    if "calibrate" not in adapter.capabilities():
        raise AdapterError(f"adapter {adapter.name!r} cannot calibrate (see `dpq adapters`)")
    opened: Artifact | ArtifactFile
    if adapter.single_file:
        opened = ArtifactFile.open(source, adapter=adapter.name)
    else:
        opened = Artifact.open(source, adapter=adapter.name)
    before = opened.nbytes
    with _processes(run):
        workers = Workers()
        saving = _saving(adapter, opened, out, options, run)
        workers.wait()
        task, checkpoint = _open(adapter, opened, options, run)
        report = calibrate(
            task,
            options.settings,
            checkpoint=_aligned(adapter, checkpoint, opened),
            dtypes=_dtypes(task, opened),
            saving=saving,
            run=run if workers.rank == 0 else dataclasses.replace(run, progress=Run().progress),
        )
        if workers.rank == 0:
            _write(adapter, opened, out, task, checkpoint, options, run)
            shutil.rmtree(saving.folder, ignore_errors=True)
        workers.wait()
    nbytes = (ArtifactFile if adapter.single_file else Artifact).open(out).nbytes
    return Calibrated(
        artifact=out,
        report=report,
        nbytes_before=before,
        nbytes=nbytes,
        writer=workers.rank == 0,
    )


def _saving(
    adapter: Adapter,
    opened: Artifact | ArtifactFile,
    out: Path,
    options: CalibrateOptions,
    run: Run,
) -> Saving:
    """Where the state of this run is kept; looks first whether anything is in the way."""
    overwrite = options.overwrite or options.resume
    if adapter.single_file:
        single_writer.check_output(out, overwrite=options.overwrite)
    else:
        check_output(out, overwrite=options.overwrite, resume=options.resume)
    folder = out.with_name(out.name + STATE_SUFFIX)
    if folder.exists() and not overwrite:
        raise ArtifactError(f"{folder}: an earlier run was not finished", CONTINUE)
    about = [repr(opened.manifest), options.baseline, repr(options.adapter), run.seed]
    identity = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    return Saving(folder=folder, resume=options.resume, identity=identity)


def _open(
    adapter: Adapter, opened: Artifact | ArtifactFile, options: CalibrateOptions, run: Run
) -> tuple[CalibrationTask, Checkpoint | None]:
    """The task and, where the student has weights by name, their originals."""
    baseline = options.baseline or opened.manifest.source
    try:
        checkpoint = None if adapter.single_file else adapter.open(baseline)
        task = adapter.calibration(str(opened.path), baseline, options.adapter, run)
    except SourceError as error:
        if options.baseline is not None:
            raise
        raise SourceError(
            f"the uncompressed model is needed, and the artifact says that it is {baseline}: "
            f"{error}",
            Hint.of("if it is elsewhere now, say where with {}", baseline=ANY),
        ) from None
    return task, checkpoint


def _aligned(
    adapter: Adapter, checkpoint: Checkpoint | None, opened: Artifact | ArtifactFile
) -> Checkpoint | None:
    """The originals in the order of the student's hidden units: codes move towards them."""
    if checkpoint is None or isinstance(opened, ArtifactFile):
        return None
    return aligned(adapter, checkpoint, opened)


def _dtypes(task: CalibrationTask, opened: Artifact | ArtifactFile) -> dict[str, torch.dtype]:
    """Name in the student -> dtype in which the artifact keeps a dense parameter."""
    if isinstance(opened, ArtifactFile):
        return {}
    kept = {e.name: e.torch_dtype for e in opened.manifest.tensors if e.spec is None}
    names = {name: task.parameter_name(name) for name, _ in task.student.named_parameters()}
    return {name: kept[stored] for name, stored in names.items() if stored in kept}


def _write(
    adapter: Adapter,
    opened: Artifact | ArtifactFile,
    out: Path,
    task: CalibrationTask,
    checkpoint: Checkpoint | None,
    options: CalibrateOptions,
    run: Run,
) -> None:
    overwrite = options.overwrite or options.resume
    if isinstance(opened, ArtifactFile):
        manifest, contents = single_writer.complete(task.packed())
        single_writer.write(out, manifest, contents, overwrite=overwrite)
        return
    replaced = _replaced(task)
    unknown = sorted(set(replaced) - set(opened.names()))
    if unknown:
        raise AdapterError(
            f"{type(task).__name__}: {unknown[0]!r} was trained, but the artifact has no such "
            "tensor; see CalibrationTask.tensor_name"
        )
    rewrite(adapter, opened, out, replaced.get, baseline=checkpoint, overwrite=overwrite, run=run)


def _replaced(task: CalibrationTask) -> dict[str, Replacement]:
    """Name in the artifact -> new value, of all that was trained."""
    layers = quantized_layers(task)
    replaced: dict[str, Replacement] = {layer.name: layer.weight.pq() for layer in layers}
    inside = {id(p) for layer in layers for p in layer.weight.parameters()}
    for name, parameter in task.student.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside:
            replaced[task.parameter_name(name)] = parameter.detach()
    return replaced


@contextmanager
def _processes(run: Run) -> Iterator[None]:
    """Within: the processes of a launcher know of each other."""
    joined = join(resolve(run.device))
    try:
        yield
    finally:
        if joined:
            torch.distributed.destroy_process_group()
