"""``dpq compress``: quantize a source into an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli import compress_single, compressing, planning, render
from dpq_cli import spec_options as given
from dpq_cli.commands import calibrate
from dpq_cli.interrupt import interruptible
from dpq_cli.recipe import Recipe, words
from dpq_cli.shared import (
    MORE_OPTIONS,
    AdapterName,
    Device,
    Json,
    Seed,
    adapter_of,
    adapter_options_of,
    using,
)
from dpq_cli.sizes import format_seconds, format_shape, format_size, parse_size

if TYPE_CHECKING:
    from dpq_core.jobs.compress import CompressReport

ROWS = 40
"""Tensors shown in the closing table; --json has them all."""

BEST_STEPS = 100
"""Steps of calibration that --preset best takes, all of them on the whole model."""

COLUMNS = ("tensor", "shape", ">bits/weight", ">relative error", ">size", ">seconds")


def command(  # one parameter per option is Typer's interface
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A model folder or file, a hub id, or builtin:NAME.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the artifact, or its .dpq file.")
    ],
    adapter: AdapterName = None,
    preset: given.Preset = None,
    bits: given.Bits = None,
    target_size: given.TargetSize = None,
    d: given.Dim = None,
    K: given.Codewords = None,
    scope: given.Scope = None,
    orientation: given.Orientation = None,
    iterations: given.Iterations = None,
    init: given.Init = None,
    row_scale: given.RowScale = None,
    changes: given.Set = None,
    override: given.Overrides = None,
    shard_size: Annotated[
        str, typer.Option("--shard-size", help="Start a new weight file beyond this size.")
    ] = "4GB",
    statistics: given.Statistics = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=0,
            help="Training steps of a calibration afterwards.  [default: 100 with --preset best]",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="Store outputs for `dpq inspect --verify`."),
    ] = True,
    recipe: Recipe = None,
    device: Device = "auto",
    seed: Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be stored; write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to 1-4 bits per weight, tensor by tensor."""
    choice = given.SpecChoice(
        preset=preset,
        bits=bits,
        target_size=target_size,
        d=d,
        K=K,
        scope=scope,
        orientation=orientation,
        iterations=iterations,
        init=init,
        row_scale=row_scale,
        changes=changes,
    )
    chosen = adapter_of(adapter, source)
    if chosen.single_file:
        trained = [name for name, value in (("statistics", statistics), ("steps", steps)) if value]
        said = (*choice.given, *(override or []), *trained)
        asked = compress_single.Asked.of(ctx, chosen, choice, said)
        how = {"overwrite": overwrite, "dry_run": dry_run}  # nothing to resume
        with using(chosen, device=device, seed=seed) as run:
            compress_single.run(asked, source, output, how, run, as_json)
        return
    verbs = compressing.verbs_of(chosen)
    own = adapter_options_of(chosen, verbs, words(ctx, chosen, *verbs))
    looks = choice.statistics(statistics)
    steps = (BEST_STEPS if preset == "best" else 0) if steps is None else steps
    data = compressing.data_of(chosen, source, own) if looks or steps else None
    job = compressing.Job(
        adapter=chosen,
        source=source,
        output=output,
        own=own,
        shard_bytes=parse_size(shard_size),
        probe=probe,
        resume=resume,
        overwrite=overwrite,
        task=data if looks else None,
        steps=steps,
    )
    wanted = planning.Wanted(
        adapter=chosen,
        source=source,
        own=own["compress"],
        choice=choice,
        spec=choice.spec(seed),
        overrides=tuple(override or ()),
        task=job.task,
    )
    with using(chosen, device=device, seed=seed) as run:
        plan = planning.make(wanted, run)
        if dry_run:
            planning.show(plan, source, as_json)
            return
        with interruptible(f"continue with --resume ({job.stage}.partial is kept)"):
            report = job.compress(plan.plan, run, plan.budget)
        done = job.calibrate(run)
    if as_json:
        values = {} if done is None else {"calibration": calibrate.report_json(done)}
        render.emit_json({**report_json(report), **values, "artifact": str(output)})
        return
    _show(report)
    if done is not None:
        calibrate.show(done)


command.__doc__ = f"{command.__doc__}\n\n{MORE_OPTIONS}"


def report_json(report: CompressReport) -> dict[str, Any]:
    """The report with the ratios that the closing table shows."""
    import dataclasses

    return {
        **dataclasses.asdict(report),
        "artifact": str(report.artifact),
        "bits_per_weight": 8 * report.nbytes / report.weights,
        "ratio_16_bit": 2 * report.weights / report.nbytes,
        "ratio_32_bit": 4 * report.weights / report.nbytes,
    }


def _show(report: CompressReport) -> None:
    quantized = [t for t in report.tensors if t.relative_error is not None]
    shown = sorted(quantized, key=lambda t: -(t.relative_error or 0.0))[:ROWS]
    rows = (
        (
            t.name,
            format_shape(t.shape),
            f"{t.bits_per_weight:.3f}",
            f"{t.relative_error:.4f}",
            format_size(t.nbytes),
            "resumed" if t.resumed else f"{t.seconds:.2f}",
        )
        for t in shown
    )
    render.table(f"Quantized tensors, {len(quantized)}, worst first", COLUMNS, rows)
    if len(quantized) > len(shown):
        render.note(f"{len(quantized) - len(shown)} more in `dpq inspect --tensors` and in --json")
    values = report_json(report)
    render.facts(
        str(report.artifact),
        [
            ("size before", format_size(report.source_nbytes)),
            ("size after", f"{format_size(report.nbytes)} on disk, every file counted"),
            ("against 16 bits", f"{values['ratio_16_bit']:.2f}x smaller"),
            ("against 32 bits", f"{values['ratio_32_bit']:.2f}x smaller"),
            ("true bits per weight", f"{values['bits_per_weight']:.3f}"),
            ("time", format_seconds(report.seconds)),
            ("peak memory", format_size(report.peak_memory)),
        ],
    )
