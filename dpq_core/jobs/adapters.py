"""Reports of the installed adapters: what each can do, or why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpq_core.errors import DPQError
from dpq_core.plugin import options, registry


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """The report of one installed adapter.

    Attributes:
        name: name of the adapter.
        distribution: the installed distribution that it comes from.
        target: ``module:Class`` that is imported.
        error: why it cannot be used; None where it can.
        summary: description in one line; None where it cannot be used.
        capabilities: its verbs besides compress.
        options: verb -> the adapter's own options.
    """

    name: str
    distribution: str
    target: str
    error: str | None
    summary: str | None
    capabilities: tuple[str, ...]
    options: dict[str, tuple[options.Option, ...]]

    @property
    def ok(self) -> bool:
        """Whether the adapter can be used."""
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, without the options."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "target": self.target,
            "ok": self.ok,
            "error": self.error,
            "summary": self.summary,
            "capabilities": list(self.capabilities),
        }


def adapters() -> list[AdapterReport]:
    """Reports of all installed adapters, of those that do not load too."""
    return [_report(entry) for entry in registry.available()]


def _report(entry: registry.AdapterEntry) -> AdapterReport:
    error, summary = None, None
    capabilities: tuple[str, ...] = ()
    described: dict[str, tuple[options.Option, ...]] = {}
    try:
        adapter = registry.load(entry.name)
        described = {verb: options.describe(cls) for verb, cls in adapter.options.items()}
        summary, capabilities = adapter.summary, adapter.capabilities()
    except DPQError as failure:
        error = str(failure)
    return AdapterReport(
        name=entry.name,
        distribution=entry.distribution,
        target=entry.target,
        error=error,
        summary=summary,
        capabilities=capabilities,
        options=described,
    )
