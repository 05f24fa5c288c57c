"""``dpq compare``: several models of one domain in one table."""

from __future__ import annotations

import csv
import inspect
import io
from typing import Annotated, Any

import typer

from dpq_cli import generate, render
from dpq_core.errors import UsageError
from dpq_core.jobs.arguments import CompareArguments

HELP = f"""Compare models: bytes, true bits per weight, memory and quality, and which one is beaten.

Results are kept, and read back while nothing has changed. \
{generate.MORE_OPTIONS.format(first="the models")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    as_csv = said.pop("as_csv", False)
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other")
    keywords = generate.keywords_of(ctx, CompareArguments, said)
    with generate.metered() as meter:
        report = dpq.compare(**keywords, progress=meter)
    if not as_csv:
        render.report(report, as_json)
        return
    text = io.StringIO()
    columns, rows = report.flat()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    typer.echo(text.getvalue(), nl=False)


_CSV = inspect.Parameter(
    "as_csv",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[bool, typer.Option("--csv", help="The table as CSV on stdout.")],
    default=False,
)

command = generate.command(CompareArguments, HELP, _run, more=(_CSV,))
