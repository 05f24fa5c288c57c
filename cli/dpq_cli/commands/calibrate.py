"""``dpq calibrate``: train an artifact's codebooks and codes on data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli import render
from dpq_cli.interrupt import interruptible
from dpq_cli.recipe import Recipe, words
from dpq_cli.shared import (
    MORE_OPTIONS,
    AdapterName,
    Device,
    Json,
    Seed,
    adapter_of,
    adapter_options,
    using,
)
from dpq_cli.sizes import format_seconds, format_size

if TYPE_CHECKING:
    from dpq_core.jobs.calibrate import Calibrated

HELP = (
    "Train an artifact on data: codebooks by gradient descent, codes by EM.",
    "Compressing looks at weights only. This looks at what the model does with them: block after "
    "block is brought back to the outputs of the uncompressed model, then the whole to its task, "
    "and codes are chosen anew every few steps. Sizes do not change. The best state by validation "
    "loss is kept, so the result is never worse than ARTIFACT.",
    "Ctrl-C saves the state, and the same command with --resume goes on as if nothing had "
    "happened. Several processes share the batches: put `torchrun --nproc-per-node N -m dpq_cli` "
    "or `accelerate launch --num_processes N -m dpq_cli` in place of `dpq`.",
    MORE_OPTIONS.replace("SOURCE", "ARTIFACT"),
)


def command(  # one parameter per option is Typer's interface
    ctx: typer.Context,
    artifact: Annotated[str, typer.Argument(help="A dpq artifact: a folder or a .dpq file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The calibrated artifact, a new one.")
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="SOURCE",
            help="The uncompressed model, the teacher.  \\[default: what ARTIFACT was made of]",
        ),
    ] = None,
    adapter: AdapterName = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps of the whole.  \\[default: 1000]")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            help="block (one after the other), end (the whole), both.  "
            "\\[default: both where there are blocks]",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Learning rate, for weights of RMS 0.05.  \\[default: 0.0001]"),
    ] = None,
    estep: Annotated[
        str | None,
        typer.Option(
            "--estep",
            help="How codes are chosen: icm, pv, icm+pv, blockdiag, l2, none.  \\[default: icm+pv]",
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option("--every", help="Steps between two choices of codes.  \\[default: 100]"),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            help="Nearest codewords (2 or 3) between which blocks choose by gradient.  "
            "\\[default: off]",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", help="Stop after so many validations without a better one."),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option("--save-every", help="Steps between two saved states.  \\[default: 200]"),
    ] = None,
    recipe: Recipe = None,
    device: Device = "auto",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    as_json: Json = False,
) -> None:
    """Train an artifact on data."""
    chosen = adapter_of(adapter, artifact)
    own = adapter_options(chosen, "calibrate", words(ctx, chosen, "calibrate"))
    from dpq_core.calibrate.settings import CalibrateSettings
    from dpq_core.jobs.calibrate import CalibrateOptions, calibrate_artifact

    given = {
        "steps": steps,
        "mode": mode,
        "lr": lr,
        "estep": estep,
        "every": every,
        "candidates": candidates,
        "patience": patience,
        "save_every": save_every,
    }
    known: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    options = CalibrateOptions(
        settings=CalibrateSettings(**known, seed=seed),
        baseline=baseline,
        resume=resume,
        overwrite=overwrite,
        adapter=own,
    )
    with interruptible(), using(chosen, device=device, seed=seed) as run:
        done = calibrate_artifact(chosen, Path(artifact), output, options, run)
    if not done.writer:
        return
    if as_json:
        render.emit_json(report_json(done))
    else:
        show(done)


command.__doc__ = "\n\n".join(HELP)


def report_json(done: Calibrated) -> dict[str, Any]:
    """The report with what the closing table shows."""
    report = done.report
    return {
        "artifact": str(done.artifact),
        "nbytes_before": done.nbytes_before,
        "nbytes": done.nbytes,
        "recovered": report.recovered,
        "codes_changed": report.changed,
        "codewords_revived": report.revived,
        "dead": report.dead,
        **dataclasses.asdict(report),
    }


def show(done: Calibrated) -> None:
    """The closing table."""
    report = done.report
    share = "nothing was lost" if report.recovered is None else f"{report.recovered:.1%}"
    tried = [e for e in report.esteps if e.what == "codes"]
    kept = sum(e.kept for e in tried)
    chosen = [e for e in report.esteps if e.what == "candidates"]
    better = [e for e in chosen if e.kept]
    blocks = f"{sum(e.changed for e in better):,} codes, {len(better)} of {len(chosen)} blocks kept"
    render.facts(
        str(done.artifact),
        [
            ("loss", report.loss),
            ("before", f"{report.before:.5g}"),
            ("after", f"{report.after:.5g}"),
            ("uncompressed", f"{report.baseline:.5g}"),
            ("recovered", share),
            ("training steps", f"{report.steps:,}"),
            ("codes changed", f"{report.changed:,} ({kept} of {len(tried)} E-steps kept)"),
            *([("by candidates", blocks)] if chosen else []),
            ("codewords", f"{report.dead:.2%} unused, {report.revived:,} revived"),
            ("size before", format_size(done.nbytes_before)),
            ("size after", f"{format_size(done.nbytes)} on disk, every file counted"),
            ("time", format_seconds(report.seconds)),
        ],
    )
