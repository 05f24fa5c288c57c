"""``dpq demo``: compress the built-in models to several sizes and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpq_cli import generate, render


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the artifacts; replaced if there.")
    ] = Path("demo-out"),
    device: Annotated[
        str, typer.Option("--device", help="Torch device; auto takes CUDA where there is one.")
    ] = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0, help="The only source of randomness.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine output on stdout.")] = False,
) -> None:
    """Compress the built-in models to several sizes; compare quality, size and samples."""
    import dpq

    with generate.metered() as meter:
        report = dpq.demo(output, device=device, seed=seed, progress=meter)
    render.report(report, as_json)
