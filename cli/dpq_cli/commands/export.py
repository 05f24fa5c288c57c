"""``dpq export``: write a model in a format that other programs open."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import ExportArguments

HELP = f"""Write an artifact, or an uncompressed source, in a format of its ecosystem.

{generate.MORE_OPTIONS.format(first="SOURCE")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, ExportArguments, said)
    with generate.metered() as meter:
        report = dpq.export(**keywords, progress=meter)
    render.report(report, as_json)


command = generate.command(ExportArguments, HELP, _run)
