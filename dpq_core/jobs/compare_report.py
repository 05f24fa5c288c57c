"""The report of a comparison: one row per model, and which models beat it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpq_core.jobs.evaluate import Measured, format_value, headings
from dpq_core.jobs.report import Report, Table
from dpq_core.plugin.results import Metric
from dpq_core.sizes import format_size

_SECONDS = "seconds"
"""Metrics whose names end so are times, which say nothing of quality."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row of a comparison.

    Attributes:
        measured: the source with its size in bytes and its metrics.
        bits_per_weight: all bytes over all weights of the source; None where nothing counts them.
        memory: bytes of the parameters of the loaded model; None where it was not loaded.
        speed: tokens or steps per second; None where it was not asked for.
        reused: whether the metrics were read back and not computed.
        beaten_by: the sources that need no more bytes and are nowhere worse.
    """

    measured: Measured
    bits_per_weight: float | None = None
    memory: int | None = None
    speed: Metric | None = None
    reused: bool = False
    beaten_by: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return {
            **self.measured.to_json(),
            "bits_per_weight": self.bits_per_weight,
            "memory": self.memory,
            "speed": None if self.speed is None else dataclasses.asdict(self.speed),
            "reused": self.reused,
            "beaten_by": list(self.beaten_by),
        }


@dataclass(frozen=True, kw_only=True)
class CompareReport(Report):
    """The rows of a comparison, one per model.

    Attributes:
        adapter: name of the adapter that measured.
        seed: seed of everything random.
        options: the adapter's options, as plain values.
        rows: the models in the order in which they were given, the baseline last.
        baseline: the source of the baseline's row; None where there is no such row.
        shown: names of the metrics in the table for people.
        notes: lines about the comparison itself.
    """

    adapter: str
    seed: int
    options: Mapping[str, Any] | None
    rows: tuple[Compared, ...]
    baseline: str | None
    shown: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, sizes in bytes."""
        return {
            "adapter": self.adapter,
            "seed": self.seed,
            "options": self.options,
            "baseline": self.baseline,
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }

    def metrics(self) -> dict[str, Metric]:
        """One metric of each name, in the order in which they were measured."""
        by_name: dict[str, Metric] = {}
        for row in self.rows:
            for metric in row.measured.evaluation.metrics:
                by_name.setdefault(metric.name, metric)
        return by_name

    def flat(self) -> tuple[tuple[str, ...], tuple[tuple[object, ...], ...]]:
        """Column names and rows of plain values, for CSV."""
        names = tuple(self.metrics())
        columns = ("source", "nbytes", "bits_per_weight", "memory", "speed", *names, "beaten_by")
        rows = []
        for row in self.rows:
            metrics = (row.measured.metric(name) for name in names)
            values = (None if metric is None else metric.value for metric in metrics)
            measured, speed = row.measured, row.speed and row.speed.value
            sizes = (measured.source, measured.nbytes, row.bits_per_weight, row.memory, speed)
            rows.append((*sizes, *values, "; ".join(row.beaten_by)))
        return columns, tuple(rows)

    def tables(self) -> tuple[Table, ...]:
        """A table with models in rows."""
        names = headings([row.measured.source for row in self.rows])
        title_of = dict(zip((row.measured.source for row in self.rows), names, strict=True))
        metrics = [metric for name, metric in self.metrics().items() if name in self.shown]
        loaded = any(row.memory for row in self.rows)
        columns = ["model", ">on disk", ">true bits", *([">in memory"] if loaded else [])]
        speed = next((row.speed for row in self.rows if row.speed), None)
        columns += [f">{speed.name}"] if speed else []
        columns += [f">{m.name} ({'higher' if m.higher_is_better else 'lower'})" for m in metrics]
        rows = []
        for row in self.rows:
            bits, memory = row.bits_per_weight, row.memory
            line: list[object] = [
                title_of[row.measured.source],
                format_size(row.measured.nbytes),
                None if bits is None else f"{bits:.3f}",
            ]
            line += [None if memory is None else format_size(memory)] if loaded else []
            line += [row.speed and format_value(row.speed.value)] if speed else []
            values = (row.measured.metric(metric.name) for metric in metrics)
            line += [None if value is None else format_value(value.value) for value in values]
            rows.append((*line, ", ".join(title_of[name] for name in row.beaten_by) or None))
        return (Table("", (*columns, "beaten by"), tuple(rows)),)

    def remarks(self) -> tuple[str, ...]:
        """The protocols, what was read back, and what the last column means."""
        metrics = self.metrics()
        lines = [f"{name}: {metrics[name].protocol}" for name in self.shown if name in metrics]
        lines += list(dict.fromkeys(f"{s.name}: {s.protocol}" for r in self.rows if (s := r.speed)))
        if more := [name for name in metrics if name not in self.shown]:
            lines.append(f"also measured, in JSON and CSV: {', '.join(more)}")
        for row in self.rows:
            lines += row.measured.evaluation.notes
        best = [row.measured.source for row in self.rows if not row.beaten_by]
        if len(self.rows) > 1:
            lines.append(
                "beaten by: a model that needs no more bytes and is worse in no metric with the "
                f"same protocol; by none: {', '.join(best)}"
            )
        reused = [row.measured.source for row in self.rows if row.reused]
        if reused:
            lines.append(f"read back, not computed again: {', '.join(reused)}")
        return (*dict.fromkeys(lines), *self.notes)


def ranked(rows: Sequence[Compared]) -> tuple[Compared, ...]:
    """The rows with the names of those that beat them."""
    beaten = [tuple(o.measured.source for o in rows if _beats(o, row)) for row in rows]
    return tuple(
        dataclasses.replace(row, beaten_by=names) for row, names in zip(rows, beaten, strict=True)
    )


def _beats(one: Compared, other: Compared) -> bool:
    """Whether a model needs no more bytes, is nowhere worse, and is somewhere better."""
    pairs = [
        (m, twin)
        for m in one.measured.evaluation.metrics
        if (twin := other.measured.metric(m.name)) is not None
        and twin.protocol == m.protocol
        and not m.name.endswith(_SECONDS)
    ]
    if not pairs:
        return False
    gains = [(m.value - t.value) * (1 if m.higher_is_better else -1) for m, t in pairs]
    gains = [0.0 if m.value == t.value else g for g, (m, t) in zip(gains, pairs, strict=True)]
    gains.append(other.measured.nbytes - one.measured.nbytes)
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)
