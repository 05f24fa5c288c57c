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
from dpq_core.planning.planner import (
    HIGH_BUDGET,
    bytes_of_bits,
    candidate_specs,
    compressible,
    plan_for_budget,
)
from dpq_core.run import Run
from dpq_core.sizes import format_seconds, format_shape, format_size, parse_size
from dpq_core.spec import Override, presets
from dpq_core.tensor.plan import Plan

if TYPE_CHECKING:
    from dpq_core.data.task import CalibrationTask
    from dpq_core.jobs.spec_arguments import SpecArguments
    from dpq_core.plugin.adapter import TensorAdapter
    from dpq_core.tensor.checkpoint import Checkpoint

RESERVED_FOR_DATA = 800
"""Bytes that are kept free for what the manifest says about data: at most two entries."""

NEEDS_DATA_BELOW = 5.0
"""Bits per weight below which models that are quantized with data by default need it.

SmolLM2-135M without data (perplexity 20.7): 38 at 4 bits, 524 at 3, 220,884 at 2.
"""

COLUMNS = ("tensor", "shape", "spec", "layout", ">bits/weight", ">error", ">size")


@dataclass(frozen=True, kw_only=True)
class PlanReport(Report):
    """A plan, with its predicted size, errors, time and memory.

    Attributes:
        source: the model.
        plan: the plan of every tensor.
        nbytes: predicted size on disk in bytes, all files counted but a probe.
        budget: allowed size in bytes; None where the user gave none.
        errors: predicted relative error by tensor; empty without a planner.
        forecast: forecast of time and memory.
        warning: what the user should know before compressing; empty where there is nothing.
        has_data: whether compressing looks at data, which takes more time than is forecast.
    """

    source: str
    plan: Plan
    nbytes: int
    forecast: Forecast
    budget: int | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    warning: str = ""
    has_data: bool = False

    def tables(self) -> tuple[Table, ...]:
        """A table of the tensors, and one of the totals."""
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
        warning = (("warning", self.warning),) if self.warning else ()
        looking = ", and the time of looking at data" if self.has_data else ""
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
                ("time", f"about {format_seconds(self.forecast.seconds)}{looking}"),
                ("peak memory", f"about {format_size(self.forecast.peak_memory)}"),
                *warning,
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        weights = sum(t.info.numel for t in self.plan)
        return {
            "nbytes": self.nbytes,
            "budget": self.budget,
            "source_nbytes": sum(t.info.nbytes for t in self.plan),
            "bits_per_weight": 8 * self.nbytes / weights,
            "seconds": self.forecast.seconds,
            "peak_memory": self.forecast.peak_memory,
            "warning": self.warning,
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
    """Plan the compression of a source, within a budget where one is given; nothing is written.

    With data, the preset ``best`` distributes the bytes of its width over the tensors.

    Args:
        adapter: adapter of the source's domain.
        arguments: the source, and how its tensors are quantized.
        options: an instance of ``Adapter.options["compress"]``, or None.
        task: makes the task whose data measures sensitivities; None to use weights alone.
        run: device, seed and progress.

    Raises:
        SourceError: the source cannot be opened.
        SpecError: the spec or an override fits no tensor, or the budget is too small.
    """
    spec = arguments.spec(data=task is not None, trellis=adapter.trellis_by_default)
    checkpoint = adapter.open_with(arguments.source, options)
    overrides = tuple(Override.parse(text) for text in arguments.override)
    rules = (*presets.preset_overrides(arguments.preset, spec), *overrides)
    shard_bytes = parse_size(arguments.shard_size)
    reserved = 0 if task is None else RESERVED_FOR_DATA
    if arguments.has_budget:
        budget = arguments.target_bytes or bytes_of_bits(checkpoint, arguments.bits or 0.0)
    else:
        plan = make_plan(checkpoint, adapter, spec, rules)
        budget = plan.nbytes + overhead(checkpoint, adapter, plan, shard_bytes) + reserved
        if task is None or not arguments.redistributes:
            return PlanReport(
                source=arguments.source,
                plan=plan,
                nbytes=budget,
                forecast=forecast(plan),
                warning=_warning(adapter, plan, has_data=task is not None),
                has_data=task is not None,
            )
    planned = plan_for_budget(
        checkpoint,
        adapter,
        budget - reserved,
        candidate_specs(spec, high=budget > bytes_of_bits(checkpoint, HIGH_BUDGET)),
        rules,
        sensitivity=_sensitivity(adapter, checkpoint, task, run),
        shard_bytes=shard_bytes,
        progress=run.progress,
    )
    return PlanReport(
        source=arguments.source,
        plan=planned.plan,
        nbytes=planned.nbytes + reserved,
        budget=budget if arguments.has_budget else None,
        errors={one.tensor.name: one.error for one in planned.chosen if one.error},
        forecast=forecast(planned.plan),
        warning=_warning(adapter, planned.plan, has_data=task is not None),
        has_data=task is not None,
    )


def _warning(adapter: TensorAdapter[Any], plan: Plan, *, has_data: bool) -> str:
    """The warning of few bits for a model that needs data and gets none; empty for no warning."""
    if has_data or not adapter.data_by_default:
        return ""
    widths = [8 * t.nbytes / max(1, t.info.numel) for t in plan if t.spec is not None]
    if min(widths, default=NEEDS_DATA_BELOW) >= NEEDS_DATA_BELOW:
        return ""
    return (
        f"without data, models of this kind are damaged below {NEEDS_DATA_BELOW:g} bits per weight "
        f"(here {min(widths):.2f}); let them look at data"
    )


def _sensitivity(
    adapter: TensorAdapter[Any],
    checkpoint: Checkpoint,
    task: Callable[[], CalibrationTask] | None,
    run: Run,
) -> dict[str, float] | None:
    """The sensitivity of the loss to each tensor; None without data."""
    if task is None:
        return None
    names = compressible(checkpoint, adapter)
    return sensitivities(task(), names, seed=run.seed, progress=run.progress)
