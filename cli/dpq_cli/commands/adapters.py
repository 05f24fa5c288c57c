"""``dpq adapters``: which domains are installed, what they can do, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpq_cli import render
from dpq_core.errors import UsageError
from dpq_core.plugin import options, registry
from dpq_core.plugin.new_adapter import RESERVED

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter


def command(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this adapter's options for every verb; `new` begins one."),
    ] = None,
    new_name: Annotated[
        str | None, typer.Argument(metavar="NEW_NAME", help="After `new`: its name.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the new package.", show_default="dpq-NEW_NAME"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write a new package over files that are there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine output on stdout.")] = False,
) -> None:
    """List the installed adapters, show one, or write the package of a new one."""
    import dpq

    if name == RESERVED:
        _write_new(new_name, output, overwrite, as_json)
        return
    if new_name is not None or output is not None or overwrite:
        raise UsageError("a second name, --output and --overwrite are for `dpq adapters new NAME`")
    if name is not None:
        _show_one(registry.load(name), as_json)
        return
    reports = dpq.adapters()
    if as_json:
        render.emit_json([report.to_json() for report in reports])
        return
    if not reports:
        render.note("no adapters are installed: pip install 'dpq[all]'")
        return
    rows = [
        (
            report.name,
            report.distribution,
            report.summary if report.ok else f"BROKEN: {report.error}",
            ", ".join(report.capabilities) or None,
        )
        for report in reports
    ]
    render.table("", ("adapter", "distribution", "summary", "beyond compress"), rows)


def _write_new(name: str | None, output: Path | None, overwrite: bool, as_json: bool) -> None:
    import dpq

    if name is None:
        raise UsageError("give the new adapter's name: dpq adapters new NAME")
    package = dpq.new_adapter(name, output, overwrite=overwrite)
    if as_json:
        files = [str(path) for path in package.files]
        render.emit_json({"folder": str(package.folder), "files": files})
        return
    for path in package.files:
        render.note(f"wrote {path}")
    render.note(f"next: pip install -e '{package.folder}[test]' && pytest {package.folder}")


def _show_one(adapter: Adapter, as_json: bool) -> None:
    verbs = {verb: options.describe(cls) for verb, cls in adapter.options.items()}
    if as_json:
        described = {
            verb: [
                {"flag": o.flag, "usage": o.usage, "default": o.default, "help": o.help}
                for o in found
            ]
            for verb, found in verbs.items()
        }
        render.emit_json(
            {
                "name": adapter.name,
                "summary": adapter.summary,
                "capabilities": list(adapter.capabilities()),
                "options": described,
            }
        )
        return
    render.note(f"{adapter.name}: {adapter.summary}")
    render.note(f"beyond compress: {', '.join(adapter.capabilities()) or 'nothing'}")
    for verb, found in verbs.items():
        shown = [(o.usage, _default(o.default), o.help) for o in found]
        command = {"evaluate": "eval"}.get(verb, verb)
        render.table(f"options of dpq {command}", ("option", "default", "meaning"), shown)


def _default(value: object) -> str | None:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or None
    return None if value is None else str(value)
