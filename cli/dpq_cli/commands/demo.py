"""``dpq demo``: compress the built-in models to several sizes and compare."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli import render
from dpq_cli.commands.evaluate import format_value, measure
from dpq_cli.shared import Device, Json, Seed, adapter_options, using
from dpq_cli.sizes import format_size
from dpq_core.errors import AdapterError
from dpq_core.plugin import registry

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter
    from dpq_core.run import Run


@dataclass(frozen=True)
class Demo:
    """An adapter, one of its built-in sources, and options that keep its demo short.

    In the options, ``{samples}`` is the folder of the model's samples, and ``{original}`` that of
    the uncompressed model's.

    Attributes:
        adapter: its name.
        source: the uncompressed model.
        evaluate: options for all models.
        sample: options for all models.
        evaluate_against: further options for compressed models.
        sample_against: further options for compressed models.
        presets: of ``dpq compress``, for adapters that have them instead of bits per weight.
        shown: metrics of the table; all of them if none is named.
    """

    adapter: str
    source: str
    evaluate: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    evaluate_against: tuple[str, ...] = ()
    sample_against: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


_DRAW = ("--scheduler", "dpmsolver++", "--sampling-steps", "10", "--batch-size", "20")

DEMOS = (
    Demo(
        "llama",
        "builtin:tiny-llama",
        evaluate=("--limit", "24"),
        sample=("--max-new-tokens", "48"),
    ),
    Demo(
        "diffusion",
        "builtin:tiny-dit",
        evaluate=(*_DRAW, "--count", "40", "--folder", "{samples}"),
        sample=(*_DRAW, "--columns", "4"),
        evaluate_against=("--baseline", "{original}", "--baseline-count", "40"),
        sample_against=("--baseline", "{original}"),
    ),
    Demo(
        "gaussian",
        "builtin:tiny-scene",
        evaluate=("--limit", "5"),
        sample=("--frames", "12", "--width", "256"),
        sample_against=("--baseline", "builtin:tiny-scene"),
        presets=("high", "balanced", "small"),
        shown=("PSNR to the photographs", "PSNR to the original", "SSIM to the original"),
    ),
)

WIDTHS = (4, 3, 2, 1)
"""Bits per weight."""

_FLOAT_BYTES = 4


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the artifacts; replaced if there.")
    ] = Path("demo-out"),
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compress the built-in models to several sizes; compare quality, size and samples."""
    results = {}
    installed = {entry.name for entry in registry.available()}
    for demo in (demo for demo in DEMOS if demo.adapter in installed):
        adapter = registry.load(demo.adapter)
        try:
            with using(adapter, device=device, seed=seed) as run:
                results[demo.adapter] = _rows(demo, adapter, output, run)
        except AdapterError as error:
            if not isinstance(error.__cause__, ImportError):
                raise
            render.note(f"left out {demo.source}: {error}")
            continue
        if not as_json:
            _show(demo, results[demo.adapter])
    if not results:
        raise AdapterError("no adapter with a demo is installed: pip install 'dpq[llama]'")
    if as_json:
        render.emit_json(results)
    else:
        render.note(f"The artifacts are in {output}: try `dpq inspect {output}/*-2bit --verify`")


def _rows(demo: Demo, adapter: Adapter, output: Path, run: Run) -> list[dict[str, Any]]:
    """One row per width or preset, the uncompressed model first."""
    versions = demo.presets or tuple(f"{bits} bits" for bits in WIDTHS)
    original, *folders = (
        output / "samples" / f"{adapter.name}-{_stem(version)}"
        for version in ("original", *versions)
    )
    for folder in (original, *folders):  # of an earlier demo
        shutil.rmtree(folder, ignore_errors=True)
    rows = [_row(demo, adapter, demo.source, run, original) | {"width": "original"}]
    for version, folder in zip(versions, folders, strict=True):
        out = output / (folder.name + (".dpq" if adapter.single_file else ""))
        compressed = _compress(demo, adapter, out, version, run)
        row = _row(demo, adapter, str(out), run, folder, original)
        row |= {"width": version, **compressed, "ratio": rows[0]["nbytes"] / row["nbytes"]}
        rows.append(row)
    return rows


def _stem(version: str) -> str:
    """``2bit`` of ``2 bits``; presets stay what they are."""
    return version.replace(" bits", "bit")


def _compress(demo: Demo, adapter: Adapter, out: Path, version: str, run: Run) -> dict[str, float]:
    """Write one version; its true bits per weight, and the seconds that it took."""
    from dpq_core.jobs.compress import CompressOptions, compress
    from dpq_core.jobs.compress_file import compress_file
    from dpq_core.spec import QuantSpec

    if adapter.single_file:
        chosen = adapter_options(adapter, "compress", ("--preset", version))
        file = compress_file(adapter, demo.source, out, overwrite=True, options=chosen, run=run)
        numbers = file.source_nbytes / _FLOAT_BYTES
        return {"bits_per_weight": 8 * file.nbytes / numbers, "seconds": file.seconds}
    spec = QuantSpec.preset(int(version.split()[0]), seed=run.seed)
    options = CompressOptions(overwrite=True)
    report = compress(adapter, demo.source, out, spec, options=options, run=run)
    return {"bits_per_weight": 8 * report.nbytes / report.weights, "seconds": report.seconds}


def _row(
    demo: Demo,
    adapter: Adapter,
    source: str,
    run: Run,
    samples: Path,
    original: Path | None = None,
) -> dict[str, Any]:
    """Sample, then evaluate: what an evaluation finds among the samples it need not make."""

    def chosen(verb: str, words: tuple[str, ...], against: tuple[str, ...]) -> Any:
        given = words if original is None else (*words, *against)
        places = {"{samples}": str(samples), "{original}": str(original)}
        return adapter_options(adapter, verb, [places.get(word, word) for word in given])

    samples.mkdir(parents=True, exist_ok=True)
    options = chosen("sample", demo.sample, demo.sample_against)
    made = adapter.sample(source, options, run, samples)
    options = chosen("evaluate", demo.evaluate, demo.evaluate_against)
    measured = measure(adapter, source, options, run)
    files = [str(path) for path in made.files]
    return {**measured.to_json(), "texts": list(made.texts), "files": files}


def _show(demo: Demo, rows: list[dict[str, Any]]) -> None:
    found = {metric["name"]: metric for row in rows for metric in row["metrics"]}
    metrics = {name: m for name, m in found.items() if name in (demo.shown or found)}
    columns = ["model", ">on disk", ">smaller", ">true bits/weight", ">seconds"]
    columns += [f">{name}" for name in metrics]
    lines = [
        [
            row["width"],
            format_size(row["nbytes"]),
            f"{row['ratio']:.2f}x" if "ratio" in row else None,
            f"{row['bits_per_weight']:.3f}" if "ratio" in row else None,
            f"{row['seconds']:.1f}" if "ratio" in row else None,
            *(_value(row, name) for name in metrics),
        ]
        for row in rows
    ]
    render.table(demo.source, columns, lines)
    for name, metric in metrics.items():
        render.note(f"{name}: {metric['protocol']}")
    for row in rows:
        for text in row["texts"][:1]:
            render.note(f"\n--- {row['width']} ---\n{text}")
        for file in row["files"][:1]:
            render.note(f"{row['width']}: {file}")


def _value(row: dict[str, Any], name: str) -> str | None:
    found = (metric["value"] for metric in row["metrics"] if metric["name"] == name)
    return next((format_value(value) for value in found), None)
