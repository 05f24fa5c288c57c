"""``dpq sample``: let a model make something a person can look at."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import SampleArguments

HELP = f"""Let a model make texts (on stdout) or files (in --output).

{generate.MORE_OPTIONS.format(first="SOURCE")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, SampleArguments, said)
    with generate.metered() as meter:
        report = dpq.sample(**keywords, progress=meter)
    if not as_json:
        typer.echo("\n\n".join(report.texts), nl=bool(report.texts))
    render.report(report, as_json)


command = generate.command(SampleArguments, HELP, _run)
