"""``dpq eval``: measure a model, side by side with the uncompressed one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli import render
from dpq_cli.recipe import Recipe, words
from dpq_cli.shared import (
    MORE_OPTIONS,
    AdapterName,
    Device,
    Json,
    Seed,
    Source,
    adapter_of,
    adapter_options,
    size_on_disk,
    using,
)
from dpq_cli.sizes import format_size
from dpq_core.errors import SourceError, SpecError

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter, Evaluation, Metric
    from dpq_core.run import Run


_WIDE = 30
"""Characters of a source that are too many for the heading of a column."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A source with its size in bytes and its metrics."""

    source: str
    nbytes: int
    evaluation: Evaluation

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, if it was measured."""
        return next((m for m in self.evaluation.metrics if m.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "source": self.source,
            "nbytes": self.nbytes,
            "metrics": [dataclasses.asdict(m) for m in self.evaluation.metrics],
            "details": dict(self.evaluation.details),
            "notes": list(self.evaluation.notes),
        }


def command(
    ctx: typer.Context,
    source: Source,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="SOURCE",
            help="The uncompressed model: compare with it, and measure it too.",
        ),
    ] = None,
    adapter: AdapterName = None,
    recipe: Recipe = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a model on its domain's own task."""
    chosen = adapter_of(adapter, *([source] if baseline is None else [source, baseline]))
    options = adapter_options(chosen, "evaluate", words(ctx, chosen, "evaluate"))
    compares = hasattr(options or chosen.options.get("evaluate"), "baseline")
    with using(chosen, device=device, seed=seed) as run:
        against_it = options
        if compares and baseline is not None:
            against_it = dataclasses.replace(options, baseline=baseline)
        results = [measure(chosen, source, against_it, run)]
        if baseline not in (None, "none"):
            try:
                results.append(measure(chosen, baseline, options, run))
            except (SpecError, SourceError) as error:
                if not compares:
                    raise
                render.note(f"{baseline} is not measured alone: {error}")
        against = {
            name: Measured(name, size_on_disk(chosen, name), evaluation)
            for name, evaluation in results[0].evaluation.others.items()
        }
    if as_json:
        names = ("result", "baseline")
        found: dict[str, Any] = {name: r.to_json() for name, r in zip(names, results, strict=False)}
        if against:
            found["against"] = {name: other.to_json() for name, other in against.items()}
        about = {"adapter": chosen.name, "seed": seed, "options": _plain(options)}
        render.emit_json(found | about)
        return
    show(results, tuple(against.values()))


command.__doc__ = f"{command.__doc__}\n\n{MORE_OPTIONS}"


def measure(adapter: Adapter, source: str, options: Any, run: Run) -> Measured:
    """Evaluate one source; its size is read before, so that a wrong source fails at once."""
    nbytes = size_on_disk(adapter, source)
    return Measured(source, nbytes, adapter.evaluate(source, options, run))


def show(results: list[Measured], against: tuple[Measured, ...] = ()) -> None:
    """Print the metrics side by side, with the protocol of every number.

    Args:
        results: the source, then the baseline if there is one; their difference is shown.
        against: further columns.
    """
    result, *baseline = results
    everyone = (*results, *against)
    names = [f">{name}" for name in _headings([r.source for r in everyone])]
    columns = ["metric", *names[: len(results)], *([">change"] if baseline else [])]
    columns += names[len(results) :]
    metrics = {m.name: m for r in reversed(everyone) for m in r.evaluation.metrics}
    order = dict.fromkeys(m.name for r in everyone for m in r.evaluation.metrics)
    rows = []
    for metric in (metrics[name] for name in order):
        row = [f"{metric.name} ({'higher' if metric.higher_is_better else 'lower'} is better)"]
        row += [_cell(r.metric(metric.name)) for r in results]
        if baseline:
            row.append(_change(result.metric(metric.name), baseline[0].metric(metric.name)))
        rows.append([*row, *(_cell(r.metric(metric.name)) for r in against)])
    size = ["size on disk", *(format_size(r.nbytes) for r in results)]
    if baseline:
        size.append(f"{baseline[0].nbytes / max(1, result.nbytes):.2f}x smaller")
    render.table("", columns, [*rows, [*size, *(format_size(r.nbytes) for r in against)]])
    for metric in (metrics[name] for name in order):
        render.note(f"{metric.name}: {metric.protocol}")
        for other in everyone[1:]:
            _warn(other, metric, strict=other in baseline)
    for measured in everyone:
        for note in measured.evaluation.notes:
            render.note(note)


def _headings(sources: Sequence[str]) -> list[str]:
    """The sources; where a path is long, the last parts of all, if that tells them apart."""
    short = [Path(source).name for source in sources]
    long = any(len(source) > _WIDE for source in sources)
    return short if long and len(set(short)) == len(short) else list(sources)


def _warn(other: Measured, metric: Metric, *, strict: bool) -> None:
    """Say how else a number of another source was measured, if it was."""
    twin = other.metric(metric.name)
    if twin is not None and twin.protocol != metric.protocol:
        remark = " (not comparable)" if strict else ""
        render.note(f"{metric.name} of {other.source}: {twin.protocol}{remark}")


def _cell(metric: Metric | None) -> str:
    return "-" if metric is None else format_value(metric.value)


def format_value(value: float) -> str:
    """Five significant digits."""
    return f"{value:.5g}"


def _change(metric: Metric | None, baseline: Metric | None) -> str:
    if metric is None or baseline is None:
        return "-"
    value, before = metric.value, baseline.value
    text = f"{value - before:+.4g}"
    if before and math.isfinite(value / before):
        text += f" ({100 * (value / before - 1):+.2f}%)"
    return text


def _plain(options: Any) -> dict[str, Any] | None:
    return None if options is None else dataclasses.asdict(options)
