"""Installs plugins for a test: a hand-written dist-info, found by the real importlib.metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

GROUP = "dpq.adapters"


def install_plugin(
    monkeypatch: pytest.MonkeyPatch,
    site: Path,
    *,
    distribution: str,
    points: dict[str, str],
    modules: dict[str, str] | None = None,
    extras: tuple[str, ...] = (),
) -> None:
    """Write a distribution with entry points ``points`` and ``modules`` into ``site``."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    provides = "".join(f"Provides-Extra: {extra}\n" for extra in extras)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n{provides}"
    )
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    for name, text in (modules or {}).items():
        (site / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(site))
