"""The verbs of ``dpq`` besides plan and compress: one function for each, also of the CLI.

Keyword arguments are the fields of the verb's class in ``arguments`` and the adapter's own options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.errors import ANY, REPLACE, Hint, SpecError, UsageError
from dpq_core.jobs import calibrate as calibrating
from dpq_core.jobs import evaluate as evaluating
from dpq_core.jobs import inspect as inspecting
from dpq_core.jobs.arguments import (
    CalibrateArguments,
    EvaluateArguments,
    ExportArguments,
    SampleArguments,
    ServeArguments,
    takes,
)
from dpq_core.jobs.calibrate import Calibrated, calibrate_artifact
from dpq_core.jobs.evaluate import EvaluationReport
from dpq_core.jobs.inspect import InspectReport
from dpq_core.jobs.report import Report, Table
from dpq_core.jobs.request import adapter_of, request
from dpq_core.nearest import nearest
from dpq_core.plugin import registry
from dpq_core.plugin.adapter import Compiles, Exports, Loads, Samples, Serves, lacks
from dpq_core.run import Progress, Run, Stream, silent
from dpq_core.sizes import format_size


@takes(CalibrateArguments)
def calibrate(
    artifact: str | Path, output: str | Path, *, progress: Progress = silent, **arguments: Any
) -> Calibrated:
    """Train an artifact on data: codebooks by gradient descent, codes by EM.

    Compressing looks at weights only. This looks at what the model does with them: block after
    block is brought back to the outputs of the uncompressed model, then the whole to its task, and
    codes are chosen anew every few steps. Sizes do not change. The best state by validation loss
    is kept, so the result is never worse than the artifact.

    Raises:
        DPQError: an argument, the artifact, the baseline or the output is wrong.
        KeyboardInterrupt: after Ctrl-C, once the state is saved; ``resume=True`` continues.
    """
    given = {"artifact": str(artifact), "output": Path(output), **arguments}
    call = request(CalibrateArguments, given)
    args = call.arguments
    options = calibrating.CalibrateOptions(
        settings=CalibrateSettings(**{name: getattr(args, name) for name in args.settings}),
        baseline=args.baseline,
        resume=args.resume,
        overwrite=args.overwrite,
        adapter=call.own.get("calibrate"),
    )
    with call.run(progress) as run:
        return calibrate_artifact(call.adapter, Path(args.artifact), args.output, options, run)


@takes(EvaluateArguments)
def evaluate(
    source: str | Path, *, progress: Progress = silent, **arguments: Any
) -> EvaluationReport:
    """Measure a model on its domain's own task.

    Raises:
        DPQError: an argument or a source is wrong, or there is nothing to measure.
    """
    call = request(EvaluateArguments, {"source": str(source), **arguments})
    args = call.arguments
    with call.run(progress) as run:
        options = call.own.get("evaluate")
        return evaluating.evaluate(call.adapter, args.source, args.baseline, options, run)


@dataclass(frozen=True, kw_only=True)
class SampleReport(Report):
    """The samples of a model, with those of its baseline where there is one.

    Attributes:
        texts: texts of the model.
        files: files that were written.
        baseline_texts: the baseline's text to each of ``texts``; empty without a baseline.
    """

    texts: tuple[str, ...]
    files: tuple[Path, ...]
    baseline_texts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        baseline = {"baseline_texts": list(self.baseline_texts)} if self.baseline_texts else {}
        files = [str(path) for path in self.files]
        return {"texts": list(self.texts), **baseline, "files": files}

    def tables(self) -> tuple[Table, ...]:
        """No tables."""
        return ()

    def remarks(self) -> tuple[str, ...]:
        """The files that were written."""
        return tuple(f"wrote {path}" for path in self.files)


@takes(SampleArguments)
def sample(
    source: str | Path,
    *,
    progress: Progress = silent,
    stream: Stream | None = None,
    **arguments: Any,
) -> SampleReport:
    """Let a model make texts, or files in ``output``.

    ``stream(number, model, piece)`` is called with texts while they are generated, where the
    adapter can.

    Raises:
        DPQError: an argument or the source is wrong, or the adapter makes no samples.
    """
    call = request(SampleArguments, {"source": str(source), **arguments})
    out = call.arguments.output
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
    if not isinstance(call.adapter, Samples):
        raise lacks(call.adapter, "sample")
    with call.run(progress, stream) as run:
        sampling = call.adapter.sample(call.arguments.source, call.own.get("sample"), run, out)
    return SampleReport(
        texts=sampling.texts, files=sampling.files, baseline_texts=sampling.baseline_texts
    )


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """The files of an export, with notes on what the format loses.

    Attributes:
        output: the file or folder.
        to: the format.
        files: all files that were written.
        nbytes: size of the files in bytes.
        notes: lines on losses and conventions.
    """

    output: Path
    to: str
    files: tuple[Path, ...]
    nbytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        files = [str(path) for path in self.files]
        return {"to": self.to, "files": files, "nbytes": self.nbytes, "notes": list(self.notes)}

    def tables(self) -> tuple[Table, ...]:
        """No tables."""
        return ()

    def remarks(self) -> tuple[str, ...]:
        """The notes, and a line on the output."""
        notes = (f"note: {note}" for note in self.notes)
        return (*notes, f"wrote {self.output} ({self.to}, {format_size(self.nbytes)})")


@takes(ExportArguments)
def export(
    source: str | Path, output: str | Path, *, progress: Progress = silent, **arguments: Any
) -> ExportReport:
    """Write an artifact, or an uncompressed source, in a format of its ecosystem.

    Raises:
        DPQError: an argument or the source is wrong, the output is in the way, or the adapter has
            no such format.
    """
    given = {"source": str(source), "output": Path(output), **arguments}
    call = request(ExportArguments, given)
    args, adapter = call.arguments, call.adapter
    if not adapter.exports or not isinstance(adapter, Exports):
        raise lacks(adapter, "export")
    to = _format(adapter.name, adapter.exports, args.to, args.output)
    if args.output.exists() and not args.overwrite:
        raise SpecError(f"{args.output}: exists already", REPLACE)
    with call.run(progress) as run:
        done = adapter.export(args.source, to, call.own.get("export"), run, args.output)
    nbytes = sum(path.stat().st_size for path in done.files)
    return ExportReport(
        output=args.output, to=to, files=done.files, nbytes=nbytes, notes=done.notes
    )


def _format(name: str, exports: tuple[str, ...], to: str | None, output: Path) -> str:
    """The format ``to``, or the one whose suffix the output has.

    Raises:
        UsageError: the adapter has no such format, or nothing gives the format.
    """
    formats = ", ".join(exports)
    if to is None:
        ends = [suffix for suffix in exports if output.name.lower().endswith(f".{suffix}")]
        if not ends and len(exports) > 1:
            raise UsageError(
                f"{output} does not say which format",
                Hint.of("give {} with one of " + formats, to=ANY),
            )
        return max(ends, key=len) if ends else exports[0]
    if to not in exports:
        raise UsageError(
            f"adapter {name!r} does not export to {to!r}; {nearest(to, exports)}formats: {formats}"
        )
    return to


def inspect(
    path: str | Path, *, verify: bool = False, device: str = "auto", progress: Progress = silent
) -> InspectReport:
    """Show sizes, true bits per weight, specs, errors and versions of an artifact.

    Raises:
        ArtifactError: it is missing, half-written, damaged or hostile; with ``verify`` also if a
            hash differs, or if the loaded model does not give the stored outputs.
    """
    run = Run(device=device, progress=progress)
    return inspecting.inspect(Path(path), verify=verify, run=run)


def verify(path: str | Path, *, device: str = "auto", progress: Progress = silent) -> InspectReport:
    """Read every byte of an artifact, check every hash, and run the stored probe again.

    Raises:
        ArtifactError: it is damaged, or the loaded model does not give the stored outputs.
    """
    return inspect(path, verify=True, device=device, progress=progress)


@takes(ServeArguments)
def serve(source: str | Path, *, progress: Progress = silent, **arguments: Any) -> None:
    """Answer requests to a model over HTTP until the process is interrupted.

    Raises:
        DPQError: an argument or the source is wrong, or the adapter serves no models.
    """
    call = request(ServeArguments, {"source": str(source), **arguments})
    if not isinstance(call.adapter, Serves):
        raise lacks(call.adapter, "serve")
    with call.run(progress) as run:
        a = call.arguments
        call.adapter.serve(a.source, a.host, a.port, run, a.engine)


def load(
    source: str | Path,
    *,
    adapter: str | None = None,
    engine: str = "",
    device: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> Any:
    """Load the model of an artifact or an uncompressed source, in its ecosystem's class.

    Args:
        source: artifact, path, hub id or ``builtin:NAME``.
        adapter: name of the adapter; None to recognize it.
        engine: what runs the model: nothing for its ecosystem, ``compiled`` for compiled code on
            the CPU, with which language models generate faster (docs/llama.md).
        device: torch device name.
        seed: the only source of randomness.
        progress: called as work goes on.

    Raises:
        DPQError: the source cannot be loaded, or the adapter loads no models or has no such engine.
    """
    chosen = adapter_of(adapter, str(source))
    if engine not in ("", "compiled"):
        raise SpecError("must be compiled, or empty", option="engine", value=engine)
    if engine:
        if not isinstance(chosen, Compiles):
            raise lacks(chosen, "run models by compiled code")
        with registry.explain_missing(chosen.name):
            return chosen.load_compiled(str(source), Run(seed=seed, progress=progress))
    if not isinstance(chosen, Loads):
        raise lacks(chosen, "load models")
    with registry.explain_missing(chosen.name):
        return chosen.load(str(source), Run(device=device, seed=seed, progress=progress))
