"""``dpq compress``: quantize a source into an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from dpq_cli import generate, render
from dpq_cli.interrupt import interruptible
from dpq_core.jobs.arguments import CompressArguments

HELP = f"""Quantize a model to 1-4 bits per weight, tensor by tensor.

{generate.MORE_OPTIONS.format(first="SOURCE")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, CompressArguments, said)
    with generate.metered() as meter, interruptible(lambda: _advice(Path(said["output"]))):
        report = dpq.compress(**keywords, progress=meter)
    render.report(report, as_json)


def _advice(output: Path) -> str:
    """What to do after Ctrl-C: finished tensors are kept."""
    from dpq_core.jobs.whole_model import unfinished

    kept = unfinished(output)
    return "" if kept is None else f"continue with --resume ({kept} is kept)"


command = generate.command(CompressArguments, HELP, _run)
