"""``dpq inspect``: what is in an artifact, and whether it is whole."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import InspectArguments

HELP = "Show sizes, true bits per weight, specs, errors and versions of an artifact."


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    tensors = said.pop("tensors", False)
    with generate.metered() as meter:
        report = dpq.inspect(**said, progress=meter)
    render.report(report, as_json, more=(report.tensor_table(),) if tensors else ())


_TENSORS = inspect.Parameter(
    "tensors",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[bool, typer.Option("--tensors", help="List every tensor.")],
    default=False,
)

command = generate.command(InspectArguments, HELP, _run, recipe=False, more=(_TENSORS,))
