"""``dpq serve``: a model behind an HTTP interface that others speak."""

from __future__ import annotations

from typing import Any

import typer

from dpq_cli import generate
from dpq_core.jobs.arguments import ServeArguments

HELP = "Serve a model over HTTP; language models by the OpenAI-compatible server of transformers."


def _run(ctx: typer.Context, said: dict[str, Any], as_json: bool) -> None:
    import dpq

    with generate.metered() as meter:
        dpq.serve(**said, progress=meter)


command = generate.command(ServeArguments, HELP, _run, recipe=False)
