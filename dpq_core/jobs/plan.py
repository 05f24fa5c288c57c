"""The plan of a whole model: a spec, bytes and time for every tensor; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpq_core.data.sensitivity import sensitivities
from dpq_core.jobs.report import Report, Table, facts
from dpq_core.planning.forecast import Forecast, forecast
from dpq_core.planning.overhead import overhead
from dpq_core.planning.plan import make_plan
from dpq_core.planning.planner import bytes_of_bits, candidate_specs, compressible, plan_for_budget
from dpq_core.run import Run
from dpq_core.sizes import format_seconds, format_shape, format_size, parse_size
from dpq_core.spec import Override, presets
from dpq_core.tensor.plan import Plan

if TYPE_CHECKING:
    from dpq_core.data.task import CalibrationTask
    from dpq_core.jobs.spec_arguments import SpecArguments
    from dpq_core.plugin.adapter import TensorAdapter
    from dpq_core.tensor.checkpoint import Checkpoint

COLUMNS = ("tensor", "shape", "spec", "layout", ">bits/weight", ">error", ">size")


@dataclass(frozen=True, kw_only=True)
class PlanReport(Report):
    """A plan and what is known of it beforehand.

    Attributes:
        source: the model.
        plan: of every tensor.
        nbytes: predicted bytes on disk, all files counted but a probe.
        budget: bytes that the user allowed, None where nothing was said of them.
        errors: predicted relative error by tensor; empty without a planner.
        forecast: of time and memory.
    """

    source: str
    plan: Plan
    nbytes: int
    forecast: Forecast
    budget: int | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    def tables(self) -> tuple[Table, ...]:
        """The tensors, then the sums."""
        rows = tuple(
            (
                t.name,
                format_shape(t.info.shape),
                "kept" if t.spec is None else f"d={t.spec.d} K={t.spec.K}",
                None if t.partition is None else t.partition.layout,
                f"{8 * t.nbytes / max(1, t.info.numel):.3f}",
                f"{self.errors[t.name]:.4f}" if t.name in self.errors else None,
                format_size(t.nbytes),
            )
            for t in self.plan
        )
        weights = sum(t.info.numel for t in self.plan)
        before = sum(t.info.nbytes for t in self.plan)
        budget = () if self.budget is None else (("budget", format_size(self.budget)),)
        return (
            Table(f"Plan for {self.source} (nothing is written)", COLUMNS, rows),
            facts(
                self.source,
                ("size before", format_size(before)),
                (
                    "size after",
                    f"{format_size(self.nbytes)} on disk, every file counted but a probe",
                ),
                *budget,
                ("true bits per weight", f"{8 * self.nbytes / weights:.3f}"),
                ("time", f"about {format_seconds(self.forecast.seconds)}"),
                ("peak memory", f"about {format_size(self.forecast.peak_memory)}"),
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        weights = sum(t.info.numel for t in self.plan)
        return {
            "nbytes": self.nbytes,
            "budget": self.budget,
            "source_nbytes": sum(t.info.nbytes for t in self.plan),
            "bits_per_weight": 8 * self.nbytes / weights,
            "seconds": self.forecast.seconds,
            "peak_memory": self.forecast.peak_memory,
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.info.shape),
                    "layout": None if t.partition is None else str(t.partition.layout),
                    "spec": None if t.spec is None else t.spec.to_json(),
                    "nbytes": t.nbytes,
                    "bits_per_weight": 8 * t.nbytes / max(1, t.info.numel),
                    "relative_error": self.errors.get(t.name),
                }
                for t in self.plan
            ],
        }


def plan_model(
    adapter: TensorAdapter[Any],
    arguments: SpecArguments,
    options: Any,
    task: Callable[[], CalibrationTask] | None,
    run: Run,
) -> PlanReport:
    """The plan of a source, within a number of bytes if one was given; nothing is written.

    With data, the preset ``best`` spends the bytes that its width would take tensor by tensor.

    Args:
        adapter: of the source's domain.
        arguments: which source, and how its tensors are quantized.
        options: an instance of ``Adapter.options["compress"]``, or None.
        task: makes the task whose data is looked at; None to look at weights alone.
        run: device, seed and progress.

    Raises:
        SourceError: the source cannot be opened.
        SpecError: the spec or an override fits no tensor, or the budget is too small.
    """
    spec = arguments.spec()
    checkpoint = adapter.open_with(arguments.source, options)
    own = tuple(Override.parse(text) for text in arguments.override)
    rules = (*presets.rules(arguments.preset, spec), *own)
    shard_bytes = parse_size(arguments.shard_size)
    if arguments.has_budget:
        budget = arguments.target_bytes or bytes_of_bits(checkpoint, arguments.bits or 0.0)
    else:
        plan = make_plan(checkpoint, adapter, spec, rules)
        budget = plan.nbytes + overhead(checkpoint, adapter, plan, shard_bytes)
        if task is None or not arguments.redistributes:
            return PlanReport(
                source=arguments.source, plan=plan, nbytes=budget, forecast=forecast(plan)
            )
    planned = plan_for_budget(
        checkpoint,
        adapter,
        budget,
        candidate_specs(spec),
        rules,
        sensitivity=_sensitivity(adapter, checkpoint, task, run),
        shard_bytes=shard_bytes,
        progress=run.progress,
    )
    return PlanReport(
        source=arguments.source,
        plan=planned.plan,
        nbytes=planned.nbytes,
        budget=budget if arguments.has_budget else None,
        errors={one.tensor.name: one.error for one in planned.chosen if one.error},
        forecast=forecast(planned.plan),
    )


def _sensitivity(
    adapter: TensorAdapter[Any],
    checkpoint: Checkpoint,
    task: Callable[[], CalibrationTask] | None,
    run: Run,
) -> dict[str, float] | None:
    """How much the loss depends on each tensor, if data is to be looked at."""
    if task is None:
        return None
    names = compressible(checkpoint, adapter)
    return sensitivities(task(), names, seed=run.seed, progress=run.progress)
