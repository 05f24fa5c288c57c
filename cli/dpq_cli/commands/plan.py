"""``dpq plan``: which spec for which tensor, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpq_cli import compress_single, compressing, planning
from dpq_cli import spec_options as given
from dpq_cli.recipe import Recipe, words
from dpq_cli.shared import (
    MORE_OPTIONS,
    AdapterName,
    Device,
    Json,
    Seed,
    adapter_of,
    adapter_options_of,
    using,
)


def command(  # one parameter per option is Typer's interface
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A model folder or file, a hub id, or builtin:NAME.")
    ],
    adapter: AdapterName = None,
    preset: given.Preset = None,
    bits: given.Bits = None,
    target_size: given.TargetSize = None,
    d: given.Dim = None,
    K: given.Codewords = None,
    scope: given.Scope = None,
    orientation: given.Orientation = None,
    row_scale: given.RowScale = None,
    changes: given.Set = None,
    override: given.Overrides = None,
    statistics: given.Statistics = None,
    recipe: Recipe = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show what `dpq compress` would store, tensor by tensor; write nothing.

    With --target-size or a fractional --bits a planner spreads the bytes: each tensor gets the
    subvector length and codebook size with which the sum of predicted errors is least. With
    --statistics (or --preset best) it first measures how much the loss depends on each tensor.
    """
    choice = given.SpecChoice(
        preset=preset,
        bits=bits,
        target_size=target_size,
        d=d,
        K=K,
        scope=scope,
        orientation=orientation,
        row_scale=row_scale,
        changes=changes,
    )
    chosen = adapter_of(adapter, source)
    if chosen.single_file:
        asked = compress_single.Asked.of(ctx, chosen, choice, (*choice.given, *(override or [])))
        with using(chosen, device=device, seed=seed) as run:
            compress_single.run(asked, source, Path(source), {"dry_run": True}, run, as_json)
        return
    verbs = compressing.verbs_of(chosen)
    own = adapter_options_of(chosen, verbs, words(ctx, chosen, *verbs))
    looks = choice.statistics(statistics)
    with using(chosen, device=device, seed=seed) as run:
        wanted = planning.Wanted(
            adapter=chosen,
            source=source,
            own=own["compress"],
            choice=choice,
            spec=choice.spec(seed),
            overrides=tuple(override or ()),
            task=compressing.data_of(chosen, source, own) if looks else None,
        )
        shown = planning.make(wanted, run)
    planning.show(shown, source, as_json)


command.__doc__ = f"{command.__doc__}\n\n{MORE_OPTIONS}"
