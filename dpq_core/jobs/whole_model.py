"""The verbs ``plan`` and ``compress``: plan, quantize and calibrate, or code into one file.

Keyword arguments are the fields of the verb's class in ``arguments`` and the adapter's own options.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.artifact.files import PARTIAL_SUFFIX
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import ANY, AdapterError, Hint, SpecError
from dpq_core.jobs.arguments import CompressArguments, PlanArguments, takes
from dpq_core.jobs.calibrate import Calibrated, CalibrateOptions, calibrate_artifact
from dpq_core.jobs.compress import CompressOptions
from dpq_core.jobs.compress import compress as compress_tensors
from dpq_core.jobs.compress_file import FileReport, compress_file
from dpq_core.jobs.compress_report import CompressReport
from dpq_core.jobs.plan import PlanReport, plan_model
from dpq_core.jobs.request import Request, request
from dpq_core.jobs.rewrite import check_output
from dpq_core.jobs.spec_arguments import SpecArguments
from dpq_core.plugin.adapter import Adapter, Calibrates, FileAdapter, TensorAdapter, lacks
from dpq_core.run import Progress, Run, silent
from dpq_core.sizes import parse_size

if TYPE_CHECKING:
    from dpq_core.data.task import CalibrationTask

BEST_STEPS = 100
"""Default number of training steps after compressing with the preset ``best``, end to end."""

UNCALIBRATED_SUFFIX = ".uncalibrated"
"""Suffix of the compressed model until its calibration is done: ``<out>.uncalibrated``."""

FOR_FILES = ("preset", "target_size")
"""The arguments of quantization that also apply to single files."""


@takes(PlanArguments)
def plan(source: str, *, progress: Progress = silent, **arguments: Any) -> PlanReport | FileReport:
    """Show what ``compress`` would store, tensor by tensor; write nothing.

    With a target size or fractional bits a planner spreads the bytes: each tensor gets the
    subvector length and codebook size with which the sum of predicted errors is least. With
    data it first measures how much the loss depends on each tensor.

    Raises:
        DPQError: an argument, the source or the adapter is wrong.
    """
    call = request(PlanArguments, {"source": str(source), **arguments})
    if isinstance(call.adapter, FileAdapter):
        return _code_file(call, call.adapter, Path(source), progress, dry_run=True)
    task = _task(call) if _uses_data(call) else None
    with call.run(progress) as run:
        return _plan(call, task, run)


@takes(CompressArguments)
def compress(
    source: str, output: str | Path, *, progress: Progress = silent, **arguments: Any
) -> CompressReport | FileReport | PlanReport:
    """Quantize a model to 1-4 bits per weight, tensor by tensor.

    Returns:
        What was written; with ``dry_run`` the plan.

    Raises:
        DPQError: an argument, the source, the adapter or the output is wrong.
        KeyboardInterrupt: after Ctrl-C; ``resume=True`` continues.
    """
    given = {"source": str(source), "output": Path(output), **arguments}
    call = request(CompressArguments, given)
    args = call.arguments
    if isinstance(call.adapter, FileAdapter):
        return _code_file(
            call,
            call.adapter,
            args.output,
            progress,
            dry_run=args.dry_run,
            overwrite=args.overwrite,
        )
    data = _uses_data(call)
    task = _task(call) if data or args.calibrates else None
    with call.run(progress) as run:
        planned = _plan(call, task if data else None, run)
        if args.dry_run:
            return planned
        report = _compress(call, planned, task if data else None, run)
        if not args.calibrates:
            return report
        calibrated = _calibrate_compressed(call, run)
        return dataclasses.replace(report, artifact=args.output, calibration=calibrated)


def _uses_data(call: Request[Any]) -> bool:
    """Whether the source is quantized with data, as the user or else its adapter wants it."""
    adapter, args = call.adapter, call.arguments
    by_default = (
        args.data is None
        and isinstance(adapter, TensorAdapter)
        and adapter.looks_at_data(args.source, call.own.get("compress"))
    )
    uses_data: bool = args.uses_data(by_default=by_default)
    return uses_data


def _task(call: Request[Any]) -> Callable[[Run], CalibrationTask]:
    """A function that makes a task with the source as student, on the user's data.

    Raises:
        AdapterError: the adapter cannot calibrate.
    """
    adapter, source = call.adapter, call.arguments.source
    if not isinstance(adapter, Calibrates):
        raise AdapterError(
            f"adapter {adapter.name!r} has no data to look at",
            Hint.of("give {}, and neither {} nor {}", data=False, preset="best", steps=ANY),
        )
    return lambda run: adapter.calibration(source, source, call.own.get("calibrate"), run)


def _bound(
    task: Callable[[Run], CalibrationTask] | None, run: Run
) -> Callable[[], CalibrationTask] | None:
    return None if task is None else lambda: task(run)


def _plan(
    call: Request[Any], task: Callable[[Run], CalibrationTask] | None, run: Run
) -> PlanReport:
    options = call.own.get("compress")
    adapter = _with_tensors(call.adapter)
    return plan_model(adapter, call.arguments, options, _bound(task, run), run)


def _uncalibrated(args: CompressArguments) -> Path:
    """The path of the compressed model, which is another until it is calibrated."""
    suffix = UNCALIBRATED_SUFFIX if args.calibrates else ""
    return args.output.with_name(args.output.name + suffix)


def unfinished(output: Path) -> Path | None:
    """The half-written folder of an interrupted ``compress``; None where there is none."""
    names = (output.name + suffix + PARTIAL_SUFFIX for suffix in ("", UNCALIBRATED_SUFFIX))
    return next((path for name in names if (path := output.with_name(name)).is_dir()), None)


def _compress(
    call: Request[CompressArguments],
    planned: PlanReport,
    task: Callable[[Run], CalibrationTask] | None,
    run: Run,
) -> CompressReport:
    """Quantize the source by a plan, within its budget if it has one."""
    args = call.arguments
    if args.calibrates:
        check_output(args.output, overwrite=args.overwrite, resume=args.resume)
    options = CompressOptions(
        resume=args.resume,
        overwrite=args.overwrite,
        shard_bytes=parse_size(args.shard_size),
        probe=args.probe,
        budget=planned.budget,
        adapter=call.own.get("compress"),
    )
    return compress_tensors(
        _with_tensors(call.adapter),
        args.source,
        _uncalibrated(args),
        planned.plan,
        options=options,
        run=run,
        task=_bound(task, run),
    )


def _calibrate_compressed(call: Request[CompressArguments], run: Run) -> Calibrated:
    """Calibrate the model that ``_compress`` wrote, and delete the uncalibrated one.

    After codes were chosen with data, single blocks have little to regain: training is end to end,
    and as the domain found it to be worth its time.
    """
    args = call.arguments
    settings: dict[str, Any] = {"steps": BEST_STEPS}
    if _uses_data(call):
        settings |= {"mode": "end", **_with_tensors(call.adapter).training_after_data}
    if args.steps is not None:
        settings["steps"] = args.steps
    options = CalibrateOptions(
        settings=CalibrateSettings(**settings, seed=run.seed),
        baseline=args.source,
        resume=args.resume,
        overwrite=args.overwrite,
        adapter=call.own.get("calibrate"),
    )
    uncalibrated = _uncalibrated(args)
    calibrated = calibrate_artifact(call.adapter, uncalibrated, args.output, options, run)
    shutil.rmtree(uncalibrated)
    return calibrated


def _with_tensors(adapter: Adapter) -> TensorAdapter[Any]:
    """Check that an adapter is a ``TensorAdapter``; returns it.

    Raises:
        AdapterError: it is neither that nor a ``FileAdapter``.
    """
    if not isinstance(adapter, TensorAdapter):
        raise lacks(adapter, "compress")
    return adapter


def _code_file(
    call: Request[Any],
    adapter: FileAdapter[Any],
    output: Path,
    progress: Progress,
    *,
    dry_run: bool,
    overwrite: bool = False,
) -> FileReport:
    """Code a source into one file; there is nothing to resume.

    Raises:
        SpecError: an argument of quantization is given that does not apply to files.
    """
    args: SpecArguments = call.arguments
    steps = isinstance(args, CompressArguments) and args.steps
    if frozenset(args.given) - frozenset(FOR_FILES) or args.data or steps:
        raise SpecError(
            f"adapter {call.adapter.name!r} has no weights to set bits and the like for; its own "
            f"options: `dpq adapters {call.adapter.name}`"
        )
    with call.run(progress) as run:
        return compress_file(
            adapter,
            args.source,
            output,
            overwrite=overwrite,
            dry_run=dry_run,
            options=call.own.get("compress"),
            budget=args.target_bytes,
            run=run,
        )
