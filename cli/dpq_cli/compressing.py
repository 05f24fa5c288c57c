"""The steps of `dpq compress` on a folder of tensors: compress, and calibrate what came of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dpq_core.data.task import CalibrationTask
    from dpq_core.jobs.calibrate import Calibrated
    from dpq_core.jobs.compress import CompressReport
    from dpq_core.plugin.adapter import Adapter
    from dpq_core.run import Run
    from dpq_core.tensor.plan import Plan

STAGE_SUFFIX = ".uncalibrated"


def verbs_of(adapter: Adapter) -> tuple[str, ...]:
    """The verbs whose options a user of `compress` and `plan` can give: also those of the data."""
    return ("compress", "calibrate") if "calibrate" in adapter.options else ("compress",)


def data_of(
    adapter: Adapter, source: str, own: Mapping[str, Any]
) -> Callable[[Run], CalibrationTask]:
    """The source itself as student, with the data that the user gave.

    Raises:
        AdapterError: the adapter cannot calibrate.
    """
    if "calibrate" not in adapter.capabilities():
        raise AdapterError(
            f"adapter {adapter.name!r} has no data to look at; leave out --preset best, "
            "--statistics and --steps"
        )
    return lambda run: adapter.calibration(source, source, own.get("calibrate"), run)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done with one source.

    Attributes:
        adapter: of the source's domain.
        source: a model, uncompressed.
        output: folder of the artifact.
        own: verb -> the adapter's own options, None for its defaults.
        shard_bytes: size of a weight file, at most.
        probe: store outputs for `dpq inspect --verify`.
        resume: continue where an interrupted run stopped.
        overwrite: replace the output.
        task: the data by whose outputs codes are chosen; None to look at weights alone.
        steps: of a calibration afterwards; 0 for none.
    """

    adapter: Adapter
    source: str
    output: Path
    own: Mapping[str, Any]
    shard_bytes: int
    probe: bool
    resume: bool
    overwrite: bool
    task: Callable[[Run], CalibrationTask] | None
    steps: int

    @property
    def mode(self) -> str:
        """How the calibration goes: codes chosen by data leave single blocks little to regain."""
        return "auto" if self.task is None else "end"

    @property
    def stage(self) -> Path:
        """Where the compressed model goes before it is calibrated."""
        name = self.output.name + (STAGE_SUFFIX if self.steps else "")
        return self.output.with_name(name)

    def compress(self, plan: Plan, run: Run, budget: int | None) -> CompressReport:
        """Quantize the source by a plan, within a budget if there is one."""
        from dpq_core.jobs.compress import CompressOptions, compress
        from dpq_core.jobs.rewrite import check_output

        if self.steps:
            check_output(self.output, overwrite=self.overwrite, resume=self.resume)
        options = CompressOptions(
            resume=self.resume,
            overwrite=self.overwrite,
            shard_bytes=self.shard_bytes,
            probe=self.probe,
            budget=budget,
            adapter=self.own["compress"],
        )
        task = None if self.task is None else partial(self.task, run)
        return compress(
            self.adapter, self.source, self.stage, plan, options=options, run=run, task=task
        )

    def calibrate(self, run: Run) -> Calibrated | None:
        """Train what ``compress`` made, if that is wanted; the stage before is then removed."""
        if not self.steps:
            return None
        from dpq_core.calibrate.settings import CalibrateSettings
        from dpq_core.jobs.calibrate import CalibrateOptions, calibrate_artifact

        options = CalibrateOptions(
            settings=CalibrateSettings(steps=self.steps, mode=self.mode, seed=run.seed),
            baseline=self.source,
            resume=self.resume,
            overwrite=self.overwrite,
            adapter=self.own.get("calibrate"),
        )
        done = calibrate_artifact(self.adapter, self.stage, self.output, options, run)
        shutil.rmtree(self.stage)
        return done
