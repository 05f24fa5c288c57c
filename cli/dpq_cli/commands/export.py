"""``dpq export``: write a model in a format that other programs open."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from dpq_cli.sizes import format_size
from dpq_core.errors import AdapterError, SpecError

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter


def command(
    ctx: typer.Context,
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")],
    to: Annotated[
        str | None,
        typer.Option("--to", help="Format, one of the adapter's.  [default: OUTPUT's suffix]"),
    ] = None,
    adapter: AdapterName = None,
    recipe: Recipe = None,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    as_json: Json = False,
) -> None:
    """Write an artifact, or an uncompressed source, in a format of its ecosystem."""
    chosen = adapter_of(adapter, source)
    if not chosen.exports:
        raise AdapterError(f"adapter {chosen.name!r} cannot export (see `dpq adapters`)")
    to = format_of(chosen, to, output)
    options = adapter_options(chosen, "export", words(ctx, chosen, "export"))
    if output.exists() and not overwrite:
        raise SpecError(f"{output}: exists already; use --overwrite to replace it")
    with using(chosen, device=device, seed=seed) as run:
        done = chosen.export(source, to, options, run, output)
    nbytes = sum(path.stat().st_size for path in done.files)
    if as_json:
        files = [str(path) for path in done.files]
        render.emit_json({"to": to, "files": files, "nbytes": nbytes, "notes": list(done.notes)})
        return
    for note in done.notes:
        render.note(f"note: {note}")
    render.note(f"wrote {output} ({to}, {format_size(nbytes)})")


command.__doc__ = f"{command.__doc__}\n\n{MORE_OPTIONS}"


def format_of(adapter: Adapter, asked: str | None, output: Path) -> str:
    """The format asked for, else the one that the name of the output ends with.

    Raises:
        typer.BadParameter: the adapter has no such format, or there is none to be seen.
    """
    formats = ", ".join(adapter.exports)
    if asked is None:
        fitting = [to for to in adapter.exports if output.name.lower().endswith(f".{to}")]
        if not fitting and len(adapter.exports) > 1:
            raise typer.BadParameter(
                f"{output} does not say which format; give --to with one of {formats}"
            )
        return max(fitting, key=len) if fitting else adapter.exports[0]
    if asked not in adapter.exports:
        near = difflib.get_close_matches(asked, adapter.exports, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise typer.BadParameter(
            f"adapter {adapter.name!r} does not export to {asked!r}; {hint}formats: {formats}"
        )
    return asked
