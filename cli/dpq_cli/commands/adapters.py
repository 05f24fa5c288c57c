"""``dpq adapters``: which domains are installed, what they can do, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dpq_cli import render
from dpq_core.plugin import options, registry

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter


def command(
    name: Annotated[
        str | None, typer.Argument(help="Show this adapter's options for every verb.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine output on stdout.")] = False,
) -> None:
    """List the installed adapters, or show one."""
    import dpq

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
