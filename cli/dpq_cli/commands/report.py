"""``dpq report``: artifacts on one HTML page."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import ReportArguments

HELP = f"""Write one HTML file about artifacts: bytes, bits and error by layer, quality, samples.

It needs no network. {generate.MORE_OPTIONS.format(first="the artifacts")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, ReportArguments, said)
    with generate.metered() as meter:
        report = dpq.report(**keywords, progress=meter)
    render.report(report, as_json)


command = generate.command(ReportArguments, HELP, _run)
