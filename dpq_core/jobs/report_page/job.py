"""The verb ``report``: artifacts and what was measured of them on one page."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpq_core.errors import DPQError, SpecError
from dpq_core.jobs.arguments import ReportArguments, takes
from dpq_core.jobs.compare import Comparison
from dpq_core.jobs.compare_report import CompareReport
from dpq_core.jobs.evaluate import NO_BASELINE
from dpq_core.jobs.report import Report, Table
from dpq_core.jobs.report_page.contents import read_contents
from dpq_core.jobs.report_page.page import Chapter, Evidence, Peer, render
from dpq_core.jobs.request import is_artifact, request
from dpq_core.jobs.results import Results, default_folder
from dpq_core.plugin.adapter import Adapter, Evaluates, Samples
from dpq_core.plugin.results import Demo
from dpq_core.run import Progress, Run, silent
from dpq_core.sizes import format_size


@dataclass(frozen=True, kw_only=True)
class PageReport(Report):
    """The page that was written, and the comparison that it shows.

    Attributes:
        output: the HTML file.
        nbytes: its size in bytes.
        comparison: what was measured; None where nothing was.
    """

    output: Path
    nbytes: int
    comparison: CompareReport | None

    def to_json(self) -> dict[str, Any]:
        """The file, its size, and the comparison as plain JSON values."""
        comparison = None if self.comparison is None else self.comparison.to_json()
        return {"output": str(self.output), "nbytes": self.nbytes, "comparison": comparison}

    def tables(self) -> tuple[Table, ...]:
        """The table of the comparison."""
        return () if self.comparison is None else self.comparison.tables()

    def remarks(self) -> tuple[str, ...]:
        """The place of the page."""
        return (f"wrote {self.output} ({format_size(self.nbytes)}); open it in any browser",)


@takes(ReportArguments)
def report(
    artifacts: Sequence[str | Path],
    output: str | Path = Path("report.html"),
    *,
    progress: Progress = silent,
    **arguments: Any,
) -> PageReport:
    """Write one HTML file about artifacts of one domain; it needs no network and no other file.

    It shows where the bytes are, the bits and error of every layer, how codewords are used, quality
    over bytes, and samples beside those of the uncompressed model.

    Args:
        artifacts: the artifacts.
        output: the HTML file, which is replaced.
        progress: called as work goes on.
        arguments: the others, listed below.

    Raises:
        DPQError: an argument or an artifact is wrong, or there is nothing to measure.
    """
    given = {"artifacts": tuple(map(str, artifacts)), "output": Path(output), **arguments}
    call = request(ReportArguments, given)
    args = call.arguments
    peers = tuple(map(Peer.parse, args.peer))
    if wrong := [source for source in args.artifacts if not is_artifact(source)]:
        raise SpecError(f"{wrong[0]} is not a dpq artifact; a report is about artifacts")
    results = Results(args.results or default_folder(), fresh=args.fresh)
    with call.run(progress) as run:
        comparison = None
        if args.measure and isinstance(call.adapter, Evaluates):
            options = call.own.get("evaluate")
            comparing = Comparison(call.adapter, args.baseline, options, run, results)
            comparison = comparing.report(args.artifacts)
        with tempfile.TemporaryDirectory(prefix="dpq-samples-") as folder:
            chapter = Chapter(
                title=call.adapter.summary,
                comparison=comparison,
                contents=tuple(read_contents(source, run) for source in args.artifacts),
                evidence={
                    str(Path(source)): _samples(
                        call.adapter, source, args.baseline, Path(folder) / str(i), run
                    )
                    for i, source in enumerate(args.artifacts)
                    if args.evidence
                },
                peers=peers,
            )
            names = ", ".join(Path(source).name for source in args.artifacts)
            nbytes = write_page(args.output, f"dpq report: {names}", [chapter])
    return PageReport(output=args.output, nbytes=nbytes, comparison=comparison)


def write_page(output: Path, title: str, chapters: Sequence[Chapter]) -> int:
    """Write a page, which appears when it is complete; returns its size in bytes."""
    page = render(title, chapters).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    partial.write_bytes(page)
    partial.replace(output)
    return len(page)


def _samples(
    adapter: Adapter, source: str, baseline: str | None, folder: Path, run: Run
) -> Evidence:
    """Samples as the adapter's demo draws them, beside those of the baseline where it can."""
    if not isinstance(adapter, Samples):
        return Evidence(problem=f"the adapter {adapter.name} makes none")
    cls = adapter.options.get("sample")
    options = None
    if cls is not None:
        shown = adapter.demo.sample if adapter.demo else {}
        values = {k: v for k, v in shown.items() if v not in (Demo.SAMPLES, Demo.ORIGINAL)}
        names = {f.name for f in dataclasses.fields(cls)}
        if baseline not in (None, "", NO_BASELINE) and "baseline" in names:
            values["baseline"] = baseline
        options = cls(**values)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        samples = adapter.sample(source, options, run, folder)
    except DPQError as error:
        return Evidence(problem=str(error))
    return Evidence(texts=samples.texts, baseline_texts=samples.baseline_texts, files=samples.files)
