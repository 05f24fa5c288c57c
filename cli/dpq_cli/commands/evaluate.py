"""``dpq eval``: measure a model, side by side with the uncompressed one."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli import render
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

if TYPE_CHECKING:
    from dpq_core.adapter import Adapter, Evaluation, Metric, Run


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
        }


def command(
    ctx: typer.Context,
    source: Source,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="SOURCE", help="Measure this too, and compare."),
    ] = None,
    adapter: AdapterName = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a model on its domain's own task."""
    sources = [source] if baseline is None else [source, baseline]
    chosen = adapter_of(adapter, *sources)
    options = adapter_options(chosen, "evaluate", ctx.args)
    with using(chosen, device=device, seed=seed) as run:
        results = [measure(chosen, s, options, run) for s in sources]
    if as_json:
        names = ("result", "baseline")
        render.emit_json(
            {name: r.to_json() for name, r in zip(names, results, strict=False)}
            | {"adapter": chosen.name, "seed": seed, "options": _plain(options)}
        )
        return
    show(results)


command.__doc__ = f"{command.__doc__}\n\n{MORE_OPTIONS}"


def measure(adapter: Adapter, source: str, options: Any, run: Run) -> Measured:
    """Evaluate one source; its size is read before, so that a wrong source fails at once."""
    nbytes = size_on_disk(adapter, source)
    return Measured(source, nbytes, adapter.evaluate(source, options, run))


def show(results: list[Measured]) -> None:
    """Print the metrics side by side, with the protocol of every number."""
    result, *others = results
    columns = ["metric", *(f">{r.source}" for r in results)]
    columns += [">change"] if others else []
    rows = []
    for metric in result.evaluation.metrics:
        found = [r.metric(metric.name) for r in results]
        row = [f"{metric.name} ({'higher' if metric.higher_is_better else 'lower'} is better)"]
        row += ["-" if m is None else format_value(m.value) for m in found]
        if others:
            row.append("-" if found[1] is None else _change(metric.value, found[1].value))
        rows.append(row)
    size = ["size on disk", *(format_size(r.nbytes) for r in results)]
    if others:
        size.append(f"{others[0].nbytes / max(1, result.nbytes):.2f}x smaller")
    render.table("", columns, [*rows, size])
    for metric in result.evaluation.metrics:
        render.note(f"{metric.name}: {metric.protocol}")
        for other in others:
            twin = other.metric(metric.name)
            if twin is not None and twin.protocol != metric.protocol:
                render.note(f"{metric.name} of {other.source}: {twin.protocol} (not comparable)")


def format_value(value: float) -> str:
    """Five significant digits."""
    return f"{value:.5g}"


def _change(value: float, before: float) -> str:
    text = f"{value - before:+.4g}"
    if before and math.isfinite(value / before):
        text += f" ({100 * (value / before - 1):+.2f}%)"
    return text


def _plain(options: Any) -> dict[str, Any] | None:
    return None if options is None else dataclasses.asdict(options)
