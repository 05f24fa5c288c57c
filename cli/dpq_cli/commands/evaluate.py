"""``dpq eval``: measure a model, side by side with the uncompressed one."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import EvaluateArguments

HELP = f"""Measure a model on its domain's own task.

{generate.MORE_OPTIONS.format(first="SOURCE")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, EvaluateArguments, said)
    with generate.metered() as meter:
        report = dpq.evaluate(**keywords, progress=meter)
    render.report(report, as_json)


command = generate.command(EvaluateArguments, HELP, _run)
