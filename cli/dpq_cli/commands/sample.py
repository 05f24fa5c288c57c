"""``dpq sample``: let a model make something a person can look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpq_cli import render
from dpq_cli.recipe import Recipe, words
from dpq_cli.shared import (
    MORE_OPTIONS,
    AdapterName,
    Device,
    Json,
    Seed,
    Source,
    adapter_of,
    adapter_options,
    using,
)


def command(
    ctx: typer.Context,
    source: Source,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for files, where there are any.")
    ] = None,
    adapter: AdapterName = None,
    recipe: Recipe = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Let a model make texts (on stdout) or files (in --output)."""
    chosen = adapter_of(adapter, source)
    options = adapter_options(chosen, "sample", words(ctx, chosen, "sample"))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    with using(chosen, device=device, seed=seed) as run:
        made = chosen.sample(source, options, run, output)
    if as_json:
        render.emit_json({"texts": list(made.texts), "files": [str(path) for path in made.files]})
        return
    typer.echo("\n\n".join(made.texts), nl=bool(made.texts))
    for path in made.files:
        render.note(f"wrote {path}")


command.__doc__ = f"{command.__doc__}\n\n{MORE_OPTIONS}"
