"""``dpq calibrate``: train an artifact's codebooks and codes on data."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate, render
from dpq_cli.interrupt import interruptible
from dpq_core.jobs.arguments import CalibrateArguments

HELP = f"""Train an artifact on data: codebooks by gradient descent, codes by EM.

Compressing looks at weights only. This looks at what the model does with them: block after block is
brought back to the outputs of the uncompressed model, then the whole to its task, and codes are
chosen anew every few steps. Sizes do not change. The best state by validation loss is kept, so the
result is never worse than ARTIFACT.

Ctrl-C saves the state, and the same command with --resume goes on as if nothing had happened.
Several processes share the batches: put `torchrun --nproc-per-node N -m dpq_cli` or `accelerate
launch --num_processes N -m dpq_cli` in place of `dpq`.

{generate.MORE_OPTIONS.format(first="ARTIFACT")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, CalibrateArguments, said)
    with interruptible(), generate.metered() as meter:
        report = dpq.calibrate(**keywords, progress=meter)
    if report.writer:
        render.report(report, as_json)


command = generate.command(CalibrateArguments, HELP, _run)
