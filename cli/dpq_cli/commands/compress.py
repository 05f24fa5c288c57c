"""``dpq compress``: quantize a source into an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli import compress_single, render
from dpq_cli.interrupt import interruptible
from dpq_cli.shared import (
    MORE_OPTIONS,
    AdapterName,
    Device,
    Json,
    Seed,
    adapter_of,
    adapter_options,
    using,
)
from dpq_cli.sizes import format_seconds, format_size, parse_size
from dpq_core import registry
from dpq_core.errors import SpecError
from dpq_core.spec import INITS, ORIENTATIONS, SCOPES, QuantSpec

if TYPE_CHECKING:
    from dpq_core.adapter import Adapter
    from dpq_core.compress import CompressReport
    from dpq_core.plan import Override, Plan

ROWS = 40
"""Tensors shown in the closing table; --json has them all."""

COLUMNS = ("tensor", "shape", ">bits/weight", ">relative error", ">size", ">seconds")


def command(  # one parameter per option is Typer's interface
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A model folder or file, a hub id, or builtin:NAME.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the artifact, or its .dpq file.")
    ],
    adapter: AdapterName = None,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Preset width: 1, 2, 3 or 4.  [default: 2]")
    ] = None,
    d: Annotated[int | None, typer.Option("--d", help="Subvector length; not with --bits.")] = None,
    K: Annotated[int | None, typer.Option("--K", help="Codewords per codebook.")] = None,
    scope: Annotated[
        str | None,
        typer.Option("--scope", help=f"Who shares a codebook: {', '.join(SCOPES)}, or a number."),
    ] = None,
    orientation: Annotated[
        str | None,
        typer.Option("--orientation", help=f"Axis of the subvectors: {', '.join(ORIENTATIONS)}."),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option("--iterations", help="k-means iterations.")
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", help=f"First codewords: {', '.join(INITS)}.")
    ] = None,
    row_scale: Annotated[
        bool, typer.Option("--row-scale/--no-row-scale", help="One scale per output row.")
    ] = True,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override",
            metavar="PATTERN=...",
            help="Other settings for some tensors: PATTERN=keep, PATTERN=4 (bits) or "
            "PATTERN=d=2,K=64. Repeatable; later ones win.",
        ),
    ] = None,
    shard_size: Annotated[
        str, typer.Option("--shard-size", help="Start a new weight file beyond this size.")
    ] = "4GB",
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="Store outputs for `dpq inspect --verify`."),
    ] = True,
    device: Device = "auto",
    seed: Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be stored; write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to 1-4 bits per weight, data-free, tensor by tensor."""
    chosen = adapter_of(adapter, source)
    if chosen.single_file:
        _refuse_tensorwise(chosen, bits, d, K, scope, orientation, iterations, init, override)
        own = adapter_options(chosen, "compress", ctx.args)
        how = {"overwrite": overwrite, "dry_run": dry_run, "options": own}  # nothing to resume
        with using(chosen, device=device, seed=seed) as run:
            compress_single.run(chosen, source, output, how, run, as_json)
        return
    kmeans = {"iterations": iterations, "init": init}
    changes = {"K": K, "scope": _scope(scope), "orientation": orientation, "seed": seed}
    spec = make_spec(bits, d, row_scale=row_scale, kmeans=_given(kmeans), **_given(changes))
    shard_bytes = parse_size(shard_size)
    overrides = _overrides(override or [])
    own = adapter_options(chosen, "compress", ctx.args)

    if dry_run:
        with registry.explain_missing(chosen.name):
            plan = _plan(chosen, source, own, spec, overrides)
        _show_plan(plan, source, as_json)
        return
    from dpq_core.compress import CompressOptions, compress

    options = CompressOptions(
        resume=resume, overwrite=overwrite, shard_bytes=shard_bytes, probe=probe, adapter=own
    )
    advice = f"continue with --resume ({output}.partial is kept)"
    with interruptible(advice), using(chosen, device=device, seed=seed) as run:
        report = compress(chosen, source, output, spec, overrides, options=options, run=run)
    if as_json:
        render.emit_json(report_json(report))
    else:
        _show(report)


command.__doc__ = f"{command.__doc__}\n\n{MORE_OPTIONS}"


def _refuse_tensorwise(adapter: Adapter, *given: object) -> None:
    """Options that set how tensors are cut have no meaning where ``pack`` codes the whole source.

    Raises:
        SpecError: one of them was given.
    """
    if any(value is not None for value in given):
        raise SpecError(
            f"adapter {adapter.name!r} has no weights to set --bits and the like for; its own "
            f"options: `dpq adapters {adapter.name}`"
        )


def make_spec(bits: int | None, d: int | None, **changes: Any) -> QuantSpec:
    """The preset of ``bits`` (default 2), or the spec with subvector length ``d``.

    Raises:
        SpecError: both are given, or a value is out of range.
    """
    if bits is not None and d is not None:
        raise SpecError("give --bits or --d, not both: --bits chooses d")
    if d is not None:
        return QuantSpec().replace(d=d, **changes)
    return QuantSpec.preset(2 if bits is None else bits, **changes)


def report_json(report: CompressReport) -> dict[str, Any]:
    """The report with the ratios that the closing table shows."""
    import dataclasses

    return {
        **dataclasses.asdict(report),
        "artifact": str(report.artifact),
        "bits_per_weight": 8 * report.nbytes / report.weights,
        "ratio_16_bit": 2 * report.weights / report.nbytes,
        "ratio_32_bit": 4 * report.weights / report.nbytes,
    }


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _scope(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdigit() else text


def _overrides(texts: list[str]) -> tuple[Override, ...]:
    if not texts:
        return ()
    from dpq_core.plan import Override

    return tuple(Override.parse(text) for text in texts)


def _plan(
    adapter: Adapter, source: str, own: Any, spec: QuantSpec, overrides: tuple[Override, ...]
) -> Plan:
    """The plan of a source; ``own`` are the adapter's options for compressing."""
    from dpq_core.plan import make_plan

    return make_plan(adapter.open_with(source, own), adapter, spec, overrides)


def _show_plan(plan: Plan, source: str, as_json: bool) -> None:
    if as_json:
        render.emit_json(_plan_json(plan))
        return
    rows = (
        (
            t.name,
            _shape(t.info.shape),
            "kept" if t.spec is None else f"d={t.spec.d} K={t.spec.K}",
            None if t.partition is None else t.partition.layout,
            f"{8 * t.nbytes / max(1, t.info.numel):.3f}",
            format_size(t.nbytes),
        )
        for t in plan
    )
    columns = ("tensor", "shape", "spec", "layout", ">bits/weight", ">size")
    render.table(f"Plan for {source} (nothing is written)", columns, rows)
    before = sum(t.info.nbytes for t in plan)
    render.note(
        f"{format_size(before)} -> {format_size(plan.nbytes)}, "
        f"{plan.bits_per_weight:.3f} bits per weight, kept tensors included, side files apart"
    )


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "nbytes": plan.nbytes,
        "source_nbytes": sum(t.info.nbytes for t in plan),
        "bits_per_weight": plan.bits_per_weight,
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.info.shape),
                "layout": None if t.partition is None else str(t.partition.layout),
                "spec": None if t.spec is None else t.spec.to_json(),
                "nbytes": t.nbytes,
                "bits_per_weight": 8 * t.nbytes / max(1, t.info.numel),
            }
            for t in plan
        ],
    }


def _show(report: CompressReport) -> None:
    quantized = [t for t in report.tensors if t.relative_error is not None]
    shown = sorted(quantized, key=lambda t: -(t.relative_error or 0.0))[:ROWS]
    rows = (
        (
            t.name,
            _shape(t.shape),
            f"{t.bits_per_weight:.3f}",
            f"{t.relative_error:.4f}",
            format_size(t.nbytes),
            "resumed" if t.resumed else f"{t.seconds:.2f}",
        )
        for t in shown
    )
    render.table(f"Quantized tensors, {len(quantized)}, worst first", COLUMNS, rows)
    if len(quantized) > len(shown):
        render.note(f"{len(quantized) - len(shown)} more in `dpq inspect --tensors` and in --json")
    values = report_json(report)
    render.facts(
        str(report.artifact),
        [
            ("size before", format_size(report.source_nbytes)),
            ("size after", f"{format_size(report.nbytes)} on disk, every file counted"),
            ("against 16 bits", f"{values['ratio_16_bit']:.2f}x smaller"),
            ("against 32 bits", f"{values['ratio_32_bit']:.2f}x smaller"),
            ("true bits per weight", f"{values['bits_per_weight']:.3f}"),
            ("time", format_seconds(report.seconds)),
            ("peak memory", format_size(report.peak_memory)),
        ],
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
