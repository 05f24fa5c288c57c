"""Evaluation of a model, side by side with the uncompressed one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.errors import SourceError, SpecError
from dpq_core.jobs.report import Report, Table
from dpq_core.jobs.request import size_on_disk
from dpq_core.plugin.adapter import Evaluates, lacks
from dpq_core.sizes import format_size

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter
    from dpq_core.plugin.results import Evaluation, Metric
    from dpq_core.run import Run

NO_BASELINE = "none"
"""Value of ``baseline`` that leaves every comparison out."""

_WIDE = 30
"""Most characters of a source in the heading of a column."""


@dataclass(frozen=True)
class Measured:
    """A source with its size in bytes and its metrics."""

    source: str
    nbytes: int
    evaluation: Evaluation

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, if it was measured."""
        return next((m for m in self.evaluation.metrics if m.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """The measurement as plain JSON values."""
        return {
            "source": self.source,
            "nbytes": self.nbytes,
            "metrics": [dataclasses.asdict(m) for m in self.evaluation.metrics],
            "details": dict(self.evaluation.details),
            "notes": list(self.evaluation.notes),
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Report):
    """The metrics of a source, of its baseline, and of further sources.

    Attributes:
        adapter: name of the adapter that measured.
        seed: seed of everything random.
        options: the adapter's options, as plain values.
        result: the measurement of the source.
        baseline: the measurement of the uncompressed model, where there is one.
        against: the measurements of further sources, by name.
        notes: lines about the comparison itself.
    """

    adapter: str
    seed: int
    options: Mapping[str, Any] | None
    result: Measured
    baseline: Measured | None = None
    against: Mapping[str, Measured] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        values: dict[str, Any] = {"result": self.result.to_json()}
        if self.baseline is not None:
            values["baseline"] = self.baseline.to_json()
        if self.against:
            values["against"] = {name: other.to_json() for name, other in self.against.items()}
        return {**values, "adapter": self.adapter, "seed": self.seed, "options": self.options}

    @property
    def _compared(self) -> tuple[Measured, ...]:
        """The measurements of the source and, where there is one, of the baseline."""
        return (self.result,) if self.baseline is None else (self.result, self.baseline)

    @property
    def _everyone(self) -> tuple[Measured, ...]:
        return (*self._compared, *self.against.values())

    def _metrics(self) -> list[Metric]:
        """One metric of each name, in the order in which they were measured."""
        by_name = {m.name: m for r in reversed(self._everyone) for m in r.evaluation.metrics}
        order = dict.fromkeys(m.name for r in self._everyone for m in r.evaluation.metrics)
        return [by_name[name] for name in order]

    def tables(self) -> tuple[Table, ...]:
        """A table with metrics in rows, sources in columns and the difference to the baseline."""
        compared, further = self._compared, tuple(self.against.values())
        names = [f">{name}" for name in headings([r.source for r in self._everyone])]
        columns = ["metric", *names[: len(compared)]]
        columns += [">change"] if self.baseline else []
        columns += names[len(compared) :]
        rows = []
        for metric in self._metrics():
            better = "higher" if metric.higher_is_better else "lower"
            row = [f"{metric.name} ({better} is better)"]
            row += [_cell(r.metric(metric.name)) for r in compared]
            if self.baseline is not None:
                before = self.baseline.metric(metric.name)
                row.append(_change(self.result.metric(metric.name), before))
            rows.append((*row, *(_cell(r.metric(metric.name)) for r in further)))
        size = ["size on disk", *(format_size(r.nbytes) for r in compared)]
        if self.baseline is not None:
            size.append(f"{self.baseline.nbytes / max(1, self.result.nbytes):.2f}x smaller")
        rows.append((*size, *(format_size(r.nbytes) for r in further)))
        return (Table("", tuple(columns), tuple(rows)),)

    def remarks(self) -> tuple[str, ...]:
        """The protocol of every metric, and the adapter's notes on each source."""
        lines = []
        for metric in self._metrics():
            lines.append(f"{metric.name}: {metric.protocol}")
            for other in self._everyone[1:]:
                twin = other.metric(metric.name)
                if twin is not None and twin.protocol != metric.protocol:
                    remark = " (not comparable)" if other is self.baseline else ""
                    lines.append(f"{metric.name} of {other.source}: {twin.protocol}{remark}")
        for measured in self._everyone:
            lines += measured.evaluation.notes
        return (*lines, *self.notes)


def measure(adapter: Adapter, source: str, options: Any, run: Run) -> Measured:
    """Evaluate one source; its size is read first, so that a wrong source fails at once."""
    if not isinstance(adapter, Evaluates):
        raise lacks(adapter, "evaluate")
    nbytes = size_on_disk(adapter, source)
    return Measured(source, nbytes, adapter.evaluate(source, options, run))


def evaluate(
    adapter: Adapter, source: str, baseline: str | None, options: Any, run: Run
) -> EvaluationReport:
    """Measure a source and, beside it, the uncompressed model.

    An adapter whose own options have a ``baseline`` compares with it pair by pair, and may measure
    it in the same pass; otherwise it is then measured alone, where that is possible.

    Args:
        adapter: adapter of both.
        source: an artifact or an uncompressed source.
        baseline: the uncompressed model, ``none``, or None for what the adapter does by itself.
        options: the adapter's options.
        run: device, seed and progress.

    Raises:
        SourceError: a source cannot be read.
        SpecError: there is nothing to measure, or an option does not fit the model.
    """
    pairs = hasattr(options, "baseline")
    given = str(baseline or "")
    with_baseline = dataclasses.replace(options, baseline=given) if pairs else options
    alone = dataclasses.replace(options, baseline="") if pairs else options
    result = measure(adapter, source, with_baseline, run)
    other, notes = None, []
    if result.evaluation.baseline is not None:
        nbytes = size_on_disk(adapter, str(baseline))
        other = Measured(str(baseline), nbytes, result.evaluation.baseline)
    elif baseline not in (None, "", NO_BASELINE):
        try:
            other = measure(adapter, str(baseline), alone, run)
        except (SpecError, SourceError) as error:
            if not pairs:
                raise
            notes.append(f"{baseline} is not measured alone: {error}")
    return EvaluationReport(
        adapter=adapter.name,
        seed=run.seed,
        options=None if with_baseline is None else dataclasses.asdict(with_baseline),
        result=result,
        baseline=other,
        against={
            name: Measured(name, size_on_disk(adapter, name), evaluation)
            for name, evaluation in result.evaluation.others.items()
        },
        notes=tuple(notes),
    )


def headings(sources: Sequence[str]) -> list[str]:
    """Column headings: the sources, or the last parts of long paths where they differ."""
    short = [Path(source).name for source in sources]
    long = any(len(source) > _WIDE for source in sources)
    return short if long and len(frozenset(short)) == len(short) else list(sources)


def _cell(metric: Metric | None) -> str:
    return "-" if metric is None else format_value(metric.value)


def format_value(value: float) -> str:
    """A value with five significant digits."""
    return f"{value:.5g}"


def _change(metric: Metric | None, baseline: Metric | None) -> str:
    if metric is None or baseline is None:
        return "-"
    value, before = metric.value, baseline.value
    text = f"{value - before:+.4g}"
    if before and math.isfinite(value / before):
        text += f" ({100 * (value / before - 1):+.2f}%)"
    return text
