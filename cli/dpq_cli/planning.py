"""The plan of `dpq plan`, `dpq compress --dry-run` and of a run with a byte budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpq_cli import render
from dpq_cli.sizes import format_seconds, format_shape, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dpq_cli.spec_options import SpecChoice
    from dpq_core.data.task import CalibrationTask
    from dpq_core.planning.forecast import Forecast
    from dpq_core.plugin.adapter import Adapter
    from dpq_core.run import Run
    from dpq_core.spec import QuantSpec
    from dpq_core.tensor.checkpoint import Checkpoint
    from dpq_core.tensor.plan import Plan

COLUMNS = ("tensor", "shape", "spec", "layout", ">bits/weight", ">error", ">size")


@dataclass(frozen=True)
class Wanted:
    """What is to be planned: the source, and all that was said about it."""

    adapter: Adapter
    source: str
    own: Any
    choice: SpecChoice
    spec: QuantSpec
    overrides: tuple[str, ...]
    task: Callable[[Run], CalibrationTask] | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A plan and what is known of it beforehand.

    Attributes:
        plan: of every tensor.
        nbytes: predicted bytes on disk, all files counted but a probe.
        budget: bytes that the user allowed, None where nothing was said of them.
        errors: predicted relative error by tensor; empty without a planner.
        forecast: of time and memory.
    """

    plan: Plan
    nbytes: int
    forecast: Forecast
    budget: int | None = None
    errors: Mapping[str, float] = field(default_factory=dict)


def make(wanted: Wanted, run: Run) -> Shown:
    """The plan, for a budget if there is one; nothing is written.

    With data, the preset ``best`` spends the bytes that its width would take tensor by tensor.

    Raises:
        SourceError: the source cannot be opened.
        SpecError: the spec or an override fits no tensor, or the budget is too small.
    """
    from dpq_core.planning.forecast import forecast
    from dpq_core.planning.overhead import overhead
    from dpq_core.planning.plan import make_plan
    from dpq_core.planning.planner import bytes_of_bits, candidates, plan_for_budget
    from dpq_core.spec import Override, presets

    checkpoint = wanted.adapter.open_with(wanted.source, wanted.own)
    choice = wanted.choice
    own = tuple(Override.parse(text) for text in wanted.overrides)
    rules = (*presets.rules(choice.preset, wanted.spec), *own)
    if choice.planned:
        budget = choice.target_bytes or bytes_of_bits(checkpoint, choice.bits or 0.0)
    else:
        plan = make_plan(checkpoint, wanted.adapter, wanted.spec, rules)
        budget = plan.nbytes + overhead(checkpoint, wanted.adapter, plan)
        if wanted.task is None or not choice.spread:
            return Shown(plan=plan, nbytes=budget, forecast=forecast(plan))
    found = plan_for_budget(
        checkpoint,
        wanted.adapter,
        budget,
        candidates(wanted.spec),
        rules,
        sensitivity=_sensitivity(wanted, checkpoint, run),
        progress=run.progress,
    )
    return Shown(
        plan=found.plan,
        nbytes=found.nbytes,
        budget=budget if choice.planned else None,
        errors={one.tensor.name: one.error for one in found.chosen if one.error},
        forecast=forecast(found.plan),
    )


def _sensitivity(wanted: Wanted, checkpoint: Checkpoint, run: Run) -> dict[str, float] | None:
    """What the data says of the tensors, if data is to be looked at."""
    from dpq_core.data.sensitivity import sensitivities
    from dpq_core.planning.planner import compressible

    if wanted.task is None:
        return None
    names = compressible(checkpoint, wanted.adapter)
    return sensitivities(wanted.task(run), names, seed=run.seed, progress=run.progress)


def show(shown: Shown, source: str, as_json: bool) -> None:
    """The table of a plan, or its JSON on stdout."""
    if as_json:
        render.emit_json(plan_json(shown))
        return
    rows = (
        (
            t.name,
            format_shape(t.info.shape),
            "kept" if t.spec is None else f"d={t.spec.d} K={t.spec.K}",
            None if t.partition is None else t.partition.layout,
            f"{8 * t.nbytes / max(1, t.info.numel):.3f}",
            f"{shown.errors[t.name]:.4f}" if t.name in shown.errors else None,
            format_size(t.nbytes),
        )
        for t in shown.plan
    )
    render.table(f"Plan for {source} (nothing is written)", COLUMNS, rows)
    weights = sum(t.info.numel for t in shown.plan)
    before = sum(t.info.nbytes for t in shown.plan)
    facts = [
        ("size before", format_size(before)),
        ("size after", f"{format_size(shown.nbytes)} on disk, every file counted but a probe"),
        ("true bits per weight", f"{8 * shown.nbytes / weights:.3f}"),
        ("time", f"about {format_seconds(shown.forecast.seconds)}"),
        ("peak memory", f"about {format_size(shown.forecast.peak_memory)}"),
    ]
    if shown.budget is not None:
        facts.insert(2, ("budget", f"{format_size(shown.budget)}"))
    render.facts(source, facts)


def plan_json(shown: Shown) -> dict[str, Any]:
    """The plan as plain values."""
    weights = sum(t.info.numel for t in shown.plan)
    return {
        "nbytes": shown.nbytes,
        "budget": shown.budget,
        "source_nbytes": sum(t.info.nbytes for t in shown.plan),
        "bits_per_weight": 8 * shown.nbytes / weights,
        "seconds": shown.forecast.seconds,
        "peak_memory": shown.forecast.peak_memory,
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.info.shape),
                "layout": None if t.partition is None else str(t.partition.layout),
                "spec": None if t.spec is None else t.spec.to_json(),
                "nbytes": t.nbytes,
                "bits_per_weight": 8 * t.nbytes / max(1, t.info.numel),
                "relative_error": shown.errors.get(t.name),
            }
            for t in shown.plan
        ],
    }
