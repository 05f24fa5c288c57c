"""Measuring several models of one domain for one table; results are kept and read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.artifact import Artifact
from dpq_core.errors import SourceError, SpecError
from dpq_core.jobs.arguments import CompareArguments, takes
from dpq_core.jobs.compare_report import Compared, CompareReport, ranked
from dpq_core.jobs.evaluate import NO_BASELINE, Measured, measure
from dpq_core.jobs.request import is_artifact, open_artifact, request, size_on_disk
from dpq_core.jobs.results import Results, default_folder, measurement_key
from dpq_core.plugin.adapter import Loads, lacks
from dpq_core.plugin.results import Evaluation, Metric
from dpq_core.plugin.speed import Times
from dpq_core.run import Progress, Run, silent

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter

_SHOWN = 4
"""Most metrics in the table for people; JSON and CSV have all of them."""


@takes(CompareArguments)
def compare(
    artifacts: Sequence[str | Path], *, progress: Progress = silent, **arguments: Any
) -> CompareReport:
    """Measure several models of one domain, and show which of them is beaten by another.

    Results are kept, and read back while the models, the options and the versions are the same.

    Args:
        artifacts: artifacts or uncompressed sources.
        progress: called as work goes on.
        arguments: the others, listed below.

    Raises:
        DPQError: an argument or a source is wrong, or there is nothing to measure.
    """
    call = request(CompareArguments, {"artifacts": tuple(map(str, artifacts)), **arguments})
    args = call.arguments
    results = Results(args.results or default_folder(), fresh=args.fresh)
    with call.run(progress) as run:
        options = call.own.get("evaluate")
        comparison = Comparison(call.adapter, args.baseline, options, run, results)
        return comparison.report(args.artifacts, speed=args.speed)


@dataclass(frozen=True)
class Comparison:
    """How the models of a comparison are measured.

    Attributes:
        adapter: adapter of all models.
        baseline: the uncompressed model, ``none``, or None for what the adapter does by itself.
        options: the adapter's options for evaluating.
        run: device, seed and progress.
        results: where results are kept.
    """

    adapter: Adapter
    baseline: str | None
    options: Any
    run: Run
    results: Results

    def report(self, sources: Iterable[str], *, speed: bool = False) -> CompareReport:
        """Measure the sources and the baseline, each once.

        Raises:
            SourceError: a source cannot be read.
            SpecError: there is nothing to measure, or an option does not fit the model.
            AdapterError: the adapter does not measure, or has no speed.
        """
        if speed and not isinstance(self.adapter, Times):
            raise lacks(self.adapter, "time its models")
        baseline = None if self.baseline in (None, "", NO_BASELINE) else str(self.baseline)
        rows: list[Compared] = []
        notes = []
        beside: tuple[Evaluation, bool] | None = None
        for source in dict.fromkeys(sources):
            if source == baseline:
                continue
            measured, reused = self._measured(source, str(self.baseline or ""))
            if baseline and measured.evaluation.baseline is not None and beside is None:
                beside = measured.evaluation.baseline, reused
            rows.append(self._row(measured, reused, speed=speed))
            for name, evaluation in measured.evaluation.others.items():
                other = Measured(name, size_on_disk(self.adapter, name), evaluation)
                rows.append(Compared(measured=other, reused=reused))
        if baseline:
            size = size_on_disk(self.adapter, baseline)
            measured, reused = Measured(baseline, size, Evaluation(metrics=())), False
            try:
                if beside is not None:
                    measured, reused = replace(measured, evaluation=beside[0]), beside[1]
                else:
                    measured, reused = self._measured(baseline, "")
            except (SpecError, SourceError) as error:
                if not rows:
                    raise
                notes.append(f"{baseline} is not measured alone: {error}")
            rows.append(self._row(measured, reused, speed=speed))
        options = self._options(str(self.baseline or ""))
        return CompareReport(
            adapter=self.adapter.name,
            seed=self.run.seed,
            options=None if options is None else dataclasses.asdict(options),
            rows=ranked(rows),
            baseline=baseline,
            shown=shown_metrics(self.adapter, rows, baseline),
            notes=tuple(notes),
        )

    def _options(self, baseline: str) -> Any:
        """The adapter's options, with the baseline where they have one."""
        if not hasattr(self.options, "baseline"):
            return self.options
        return replace(self.options, baseline=baseline)

    def _measured(self, source: str, baseline: str) -> tuple[Measured, bool]:
        """A source with its metrics, and whether they were read back."""
        options = self._options(baseline)
        pairs = hasattr(options, "baseline")
        sources = {"source": source}
        if pairs and baseline != NO_BASELINE:
            made_of = open_artifact(source).manifest.source if is_artifact(source) else ""
            sources["baseline"] = baseline or (made_of if Path(made_of).exists() else "")
        key = self._key("evaluate", sources, options)

        def make() -> dict[str, Any]:
            measured = measure(self.adapter, source, options, self.run)
            return {"nbytes": measured.nbytes, "evaluation": measured.evaluation.to_json()}

        kept, reused = self.results.get(key, make)
        return Measured(source, kept["nbytes"], Evaluation.from_json(kept["evaluation"])), reused

    def _row(self, measured: Measured, reused: bool, *, speed: bool) -> Compared:
        """The row of a measured source."""
        source, adapter, run = measured.source, self.adapter, self.run

        def load() -> dict[str, Any]:
            return {"memory": _memory(adapter, source, run)}

        def time() -> dict[str, Any]:
            if not isinstance(adapter, Times):
                raise lacks(adapter, "time its models")
            return dataclasses.asdict(adapter.speed(source, run))

        memory, _ = self.results.get(self._key("memory", {"source": source}, None), load)
        timed = None
        if speed:
            timed, _ = self.results.get(self._key("speed", {"source": source}, None), time)
        weights = weights_of(self.adapter, source)
        return Compared(
            measured=measured,
            bits_per_weight=8 * measured.nbytes / weights if weights else None,
            memory=memory["memory"],
            speed=None if timed is None else Metric(**timed),
            reused=reused,
        )

    def _key(self, what: str, sources: Mapping[str, str], options: Any) -> dict[str, Any] | None:
        key = measurement_key(self.adapter.name, sources, options, self.run)
        return None if key is None else {"what": what, **key}


def weights_of(adapter: Adapter, source: str) -> int:
    """The number of weights of the source, or of what an artifact was made of."""
    if not is_artifact(source):
        return sum(math.prod(info.shape) for info in adapter.open(source).tensors.values())
    artifact = open_artifact(source)
    if isinstance(artifact, Artifact):
        return sum(math.prod(entry.shape) for entry in artifact.manifest.tensors)
    numbers = sum(math.prod(attribute.shape) for attribute in artifact.manifest.attributes)
    return artifact.manifest.source_items * numbers


def _memory(adapter: Adapter, source: str, run: Run) -> int | None:
    """Bytes of the parameters, buffers or arrays of a loaded model; None where it has none."""
    import torch

    if not isinstance(adapter, Loads):
        return None
    model = adapter.load(source, run)
    parts = [model, *getattr(model, "components", {}).values()]
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    if not modules:  # a scene of arrays, or a dict of tensors
        values = model if isinstance(model, Mapping) else getattr(model, "__dict__", {})
        sizes = (getattr(value, "nbytes", 0) for value in values.values())
        return sum(size for size in sizes if isinstance(size, int)) or None
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def shown_metrics(
    adapter: Adapter, rows: Sequence[Compared], baseline: str | None
) -> tuple[str, ...]:
    """The metrics in the table for people.

    Where there are more than a few, they are those of the adapter's demo; else the first ones that
    a model has by itself, and the first ones that compare it with the baseline.
    """
    names = tuple(dict.fromkeys(m.name for r in rows for m in r.measured.evaluation.metrics))
    if len(names) <= _SHOWN:
        return names
    preferred = adapter.demo.shown if adapter.demo else ()
    if chosen := tuple(name for name in names if name in preferred):
        return chosen
    last = rows[-1].measured
    alone = [n for n in names if baseline == last.source and last.metric(n) is not None]
    pairs = [name for name in names if name not in alone][: _SHOWN // 2]
    return (*alone[: _SHOWN - len(pairs)], *pairs) if alone else names[:_SHOWN]
