"""``dpq demo``: compress the built-in models to several sizes and compare."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import DemoArguments

HELP = "Compress the built-in models to several sizes; compare quality, size and samples."


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    with generate.metered() as meter:
        report = dpq.demo(**said, progress=meter)
    render.report(report, as_json)


command = generate.command(DemoArguments, HELP, _run, recipe=False)
