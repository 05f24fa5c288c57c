"""A benchmark result is one JSON line with its provenance in ``benchmarks/results/NAME.jsonl``."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("dpq", "torch", "numba", "numpy")


def append(
    name: str,
    *,
    spec: Any,
    seed: int,
    results: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    packages: Sequence[str] = (),
    folder: Path = RESULTS,
) -> Path:
    """Append one line to ``NAME.jsonl`` and return its path.

    Args:
        name: of the suite.
        spec: what was run: a dataclass or plain JSON values.
        seed: of everything random in it.
        results: the measurements, plain JSON values with the unit in the key (``seconds``).
        packages: further distributions whose versions matter, such as the peer.
        folder: where the records are.
    """
    line = {
        "suite": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "machine": machine(),
        "versions": versions((*PACKAGES, *packages)),
        "seed": seed,
        "spec": dataclasses.asdict(spec) if dataclasses.is_dataclass(spec) else spec,
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    return path


def git_state() -> dict[str, Any]:
    """Commit of the checkout and whether files differ from it; None outside a checkout."""
    sha = _git("rev-parse", "HEAD")
    # The records themselves do not count: the first line of a run would make the others dirty.
    others = ("--", ":/", ":(top,exclude)benchmarks/results")
    changes = _git("status", "--porcelain", "--untracked-files=no", *others)
    return {"sha": sha or None, "dirty": None if changes is None else bool(changes)}


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory, load and system; no host name."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": _cpu_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_GB": round(memory, 1),
        "load_average": os.getloadavg()[0],  # how quiet it was
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Installed version of Python and of each distribution; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    fields = {}
    if info.exists():
        for line in info.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    # Virtual machines hide the product name; the family and model numbers remain.
    model = fields.get("model")
    return f"{name} (family {fields['cpu family']} model {model})" if model else name
