"""``dpq adapters``: which domains are installed, what they can do, and what is wrong with them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dpq_cli import render
from dpq_cli.shared import Json
from dpq_core.errors import DPQError
from dpq_core.plugin import options, registry
from dpq_core.plugin.adapter import Adapter


def command(
    name: Annotated[
        str | None, typer.Argument(help="Show this adapter's options for eval and sample.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the installed adapters, or show one."""
    if name is not None:
        _show_one(registry.load(name), as_json)
        return
    states = [state(entry) for entry in registry.available()]
    if as_json:
        render.emit_json(states)
        return
    if not states:
        render.note("no adapters are installed: pip install 'dpq[all]'")
        return
    rows = [
        (
            s["name"],
            s["distribution"],
            s["summary"] if s["ok"] else f"BROKEN: {s['error']}",
            ", ".join(s["capabilities"]) or None,
        )
        for s in states
    ]
    render.table("", ("adapter", "distribution", "summary", "beyond compress"), rows)


def state(entry: registry.AdapterEntry) -> dict[str, Any]:
    """One claim as JSON values; ``error`` is the reason why it does not load."""
    base = {"name": entry.name, "distribution": entry.distribution, "target": entry.target}
    try:
        adapter = registry.load(entry.name)
        for cls in adapter.options.values():
            options.describe(cls)
    except DPQError as error:
        return {**base, "ok": False, "error": str(error), "summary": None, "capabilities": []}
    return {
        **base,
        "ok": True,
        "error": None,
        "summary": adapter.summary,
        "capabilities": list(adapter.capabilities()),
    }


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
