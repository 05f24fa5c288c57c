"""The demo: the built-in models of all installed adapters, compressed to several sizes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpq_core import device as devices
from dpq_core.errors import AdapterError
from dpq_core.jobs.compare import shown_metrics, weights_of
from dpq_core.jobs.compare_report import Compared, CompareReport, ranked
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.jobs.compress_file import compress_file
from dpq_core.jobs.evaluate import Measured, format_value, measure
from dpq_core.jobs.report import Report, Table
from dpq_core.jobs.report_page.contents import read_contents
from dpq_core.jobs.report_page.job import write_page
from dpq_core.jobs.report_page.page import Chapter, Evidence
from dpq_core.plugin import registry
from dpq_core.plugin.adapter import Adapter, FileAdapter, Samples, TensorAdapter, lacks
from dpq_core.plugin.results import Demo, Evaluation, Metric
from dpq_core.run import Progress, Run, silent
from dpq_core.sizes import format_size
from dpq_core.spec import QuantSpec

WIDTHS = (4, 3, 2, 1)
"""Bits per weight of the compressed versions."""

_FLOAT_BYTES = 4

PAGE = "report.html"
"""Name of the report in the folder of the artifacts."""

Row = dict[str, Any]
"""The measurements of one version of a model, as plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class DemoReport(Report):
    """The measurements of every built-in model at several sizes.

    Attributes:
        output: folder of the artifacts.
        rows: adapter -> the versions of its model, the uncompressed model first.
        demos: adapter -> its demo.
        left_out: one line per adapter that lacks a dependency.
        page: the HTML report about all artifacts.
    """

    output: Path
    rows: Mapping[str, list[Row]]
    demos: Mapping[str, Demo]
    left_out: tuple[str, ...] = field(default=())
    page: Path

    def to_json(self) -> dict[str, Any]:
        """The rows by adapter."""
        return dict(self.rows)

    def tables(self) -> tuple[Table, ...]:
        """One table per model."""
        return tuple(_table(self.demos[name], rows) for name, rows in self.rows.items())

    def remarks(self) -> tuple[str, ...]:
        """The protocols, the first sample of every version, and the place of the artifacts."""
        lines = list(self.left_out)
        for adapter, rows in self.rows.items():
            metrics = _metrics(self.demos[adapter], rows)
            lines += [f"{name}: {metric['protocol']}" for name, metric in metrics.items()]
            for row in rows:
                lines += [f"\n--- {row['width']} ---\n{text}" for text in row["texts"][:1]]
                lines += [f"{row['width']}: {file}" for file in row["files"][:1]]
        where = (
            f"The artifacts are in {self.output}: try `dpq inspect {self.output}/*-2bit --verify`"
        )
        return (*lines, where, f"All of it on one page: {self.page}")


def demo(
    output: str | Path = Path("demo-out"),
    *,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> DemoReport:
    """Compress the built-in models to several sizes; compare quality, size and samples.

    Args:
        output: folder for the artifacts, which are replaced.
        device: torch device.
        seed: the only source of randomness.
        progress: called as work goes on.

    Raises:
        AdapterError: no adapter with a demo is installed.
    """
    devices.resolve(device)
    run = Run(device=device, seed=seed, progress=progress)
    rows: dict[str, list[Row]] = {}
    demos: dict[str, Demo] = {}
    left_out = []
    for name in dict.fromkeys(entry.name for entry in registry.available()):
        try:
            adapter = registry.load(name)
            if adapter.demo is None:
                continue
            with registry.explain_missing(name):
                rows[name] = _rows(adapter.demo, adapter, Path(output), run)
            demos[name] = adapter.demo
        except AdapterError as error:
            if not isinstance(error.__cause__, ImportError):
                raise
            left_out.append(f"left out {name}: {error}")
    if not rows:
        why = f"; {'; '.join(left_out)}" if left_out else ""
        raise AdapterError(f"no adapter with a demo is installed: pip install 'dpq[llama]'{why}")
    page = Path(output) / PAGE
    chapters = [_chapter(registry.load(name), demos[name], rows[name], run) for name in rows]
    write_page(page, "dpq demo", chapters)
    return DemoReport(
        output=Path(output), rows=rows, demos=demos, left_out=tuple(left_out), page=page
    )


def _chapter(adapter: Adapter, demo: Demo, rows: list[Row], run: Run) -> Chapter:
    """The part of the report about one built-in model."""
    compared = [
        Compared(
            measured=Measured(
                row["source"],
                row["nbytes"],
                Evaluation(
                    metrics=tuple(Metric(**metric) for metric in row["metrics"]),
                    notes=tuple(row["notes"]),
                ),
            ),
            bits_per_weight=8 * row["nbytes"] / max(1, weights_of(adapter, row["source"])),
        )
        for row in (*rows[1:], rows[0])
    ]
    comparison = CompareReport(
        adapter=adapter.name,
        seed=run.seed,
        options=None,
        rows=ranked(compared),
        baseline=demo.source,
        shown=demo.shown or shown_metrics(adapter, compared, demo.source),
    )
    evidence = {
        row["source"]: Evidence(
            texts=tuple(row["texts"]),
            baseline_texts=tuple(rows[0]["texts"]),
            files=tuple(map(Path, row["files"])),
        )
        for row in rows[1:]
    }
    contents = tuple(read_contents(row["source"], run) for row in rows[1:])
    title = f"{demo.source}: {adapter.summary}"
    return Chapter(title=title, comparison=comparison, contents=contents, evidence=evidence)


def _rows(demo: Demo, adapter: Adapter, output: Path, run: Run) -> list[Row]:
    """One row per width or preset, the uncompressed model first."""
    versions = demo.presets or tuple(f"{bits} bits" for bits in WIDTHS)
    original, *folders = (
        output / "samples" / f"{adapter.name}-{version.replace(' bits', 'bit')}"
        for version in ("original", *versions)
    )
    for folder in (original, *folders):  # samples of an earlier demo
        shutil.rmtree(folder, ignore_errors=True)
    rows = [_row(demo, adapter, demo.source, run, original) | {"width": "original"}]
    for version, folder in zip(versions, folders, strict=True):
        out = output / (folder.name + (".dpq" if isinstance(adapter, FileAdapter) else ""))
        compressed = _compress(demo, adapter, out, version, run)
        row = _row(demo, adapter, str(out), run, folder, original)
        row |= {"width": version, **compressed, "ratio": rows[0]["nbytes"] / row["nbytes"]}
        rows.append(row)
    return rows


def _compress(demo: Demo, adapter: Adapter, out: Path, version: str, run: Run) -> dict[str, float]:
    """Write one version; returns its true bits per weight and its seconds."""
    if isinstance(adapter, FileAdapter):
        chosen = adapter.options["compress"](preset=version)
        file = compress_file(adapter, demo.source, out, overwrite=True, options=chosen, run=run)
        numbers = file.source_nbytes / _FLOAT_BYTES
        return {"bits_per_weight": 8 * file.nbytes / numbers, "seconds": file.seconds}
    if not isinstance(adapter, TensorAdapter):
        raise lacks(adapter, "compress")
    spec = QuantSpec.preset(int(version.split()[0]), seed=run.seed)
    options = CompressOptions(overwrite=True)
    report = compress(adapter, demo.source, out, spec, options=options, run=run)
    return {"bits_per_weight": 8 * report.nbytes / report.weights, "seconds": report.seconds}


def _row(
    demo: Demo,
    adapter: Adapter,
    source: str,
    run: Run,
    samples: Path,
    original: Path | None = None,
) -> Row:
    """Sample, then evaluate: an evaluation does not repeat the samples that it finds."""

    def options(verb: str, values: Mapping[str, Any], against: Mapping[str, Any]) -> Any:
        cls = _options_class(adapter, verb)
        if cls is None:
            return None
        given = values if original is None else {**values, **against}
        places = {demo.SAMPLES: str(samples), demo.ORIGINAL: str(original)}
        return cls(**{k: places.get(v, v) if isinstance(v, str) else v for k, v in given.items()})

    if not isinstance(adapter, Samples):
        raise lacks(adapter, "sample")
    samples.mkdir(parents=True, exist_ok=True)
    chosen = options("sample", demo.sample, demo.sample_against)
    sampling = adapter.sample(source, chosen, run, samples)
    chosen = options("evaluate", demo.evaluate, demo.evaluate_against)
    measured = measure(adapter, source, chosen, run)
    files = [str(path) for path in sampling.files]
    return {**measured.to_json(), "texts": list(sampling.texts), "files": files}


def _options_class(adapter: Adapter, verb: str) -> type | None:
    return adapter.options.get(verb)


def _metrics(demo: Demo, rows: list[Row]) -> dict[str, Any]:
    """The metrics of the table by name."""
    metrics = {metric["name"]: metric for row in rows for metric in row["metrics"]}
    return {name: metric for name, metric in metrics.items() if name in (demo.shown or metrics)}


def _table(demo: Demo, rows: list[Row]) -> Table:
    metrics = _metrics(demo, rows)
    columns = ("model", ">on disk", ">smaller", ">true bits/weight", ">seconds")
    lines = tuple(
        (
            row["width"],
            format_size(row["nbytes"]),
            f"{row['ratio']:.2f}x" if "ratio" in row else None,
            f"{row['bits_per_weight']:.3f}" if "ratio" in row else None,
            f"{row['seconds']:.1f}" if "ratio" in row else None,
            *(_value(row, name) for name in metrics),
        )
        for row in rows
    )
    return Table(demo.source, (*columns, *(f">{name}" for name in metrics)), lines)


def _value(row: Row, name: str) -> str | None:
    values = (metric["value"] for metric in row["metrics"] if metric["name"] == name)
    return next((format_value(value) for value in values), None)
