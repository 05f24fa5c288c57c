"""``dpq plan``: which spec for which tensor, before anything is written."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate, render
from dpq_core.jobs.arguments import PlanArguments

HELP = f"""Show what `dpq compress` would store, tensor by tensor; write nothing.

With --target-size or a fractional --bits a planner spreads the bytes: each tensor gets the
subvector length and codebook size with which the sum of predicted errors is least. With
data it first measures how much the loss depends on each tensor.

{generate.MORE_OPTIONS.format(first="SOURCE")}"""


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    keywords = generate.keywords_of(ctx, PlanArguments, said)
    with generate.metered() as meter:
        report = dpq.plan(**keywords, progress=meter)
    render.report(report, as_json)


command = generate.command(PlanArguments, HELP, _run)
