"""``dpq doctor``: what this machine has, for people and for bug reports."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from dpq_cli import render
from dpq_core.sizes import format_size
from dpq_core.version import __version__

LIBRARIES = ("torch", "numba", "numpy", "safetensors", "triton", "transformers", "lm_eval")


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Machine output on stdout.")] = False,
) -> None:
    """Show versions, devices, threads, compiled kernels, free disk and adapters."""
    found = examine()
    if as_json:
        render.emit_json(found)
        return
    rows = [("dpq", found["dpq"]), ("python", found["python"]), ("platform", found["platform"])]
    rows += [(name, version or "not installed") for name, version in found["libraries"].items()]
    rows += [
        ("devices", ", ".join(found["devices"])),
        ("threads", f"{found['threads']['torch']} (torch and kernels)"),
        ("CPU kernels", _kernels(found["kernels"])),
        ("look-ups of codes", found["look_ups"]),
        ("memory", f"{format_size(found['memory_free'])} free"),
        ("disk here", f"{format_size(found['disk_free'])} free"),
    ]
    for adapter in found["adapters"]:
        rows.append((f"adapter {adapter['name']}", "ok" if adapter["ok"] else adapter["error"]))
    render.facts("", rows)


def examine() -> dict[str, Any]:
    """Everything that the command shows, as JSON values; sizes in bytes."""
    import psutil
    import torch

    from dpq_core.jobs.adapters import adapters
    from dpq_core.kernels.cpu import lut

    return {
        "dpq": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "devices": _devices(),
        "threads": {"torch": torch.get_num_threads()},
        "kernels": _compiled_kernels(),
        "look_ups": lut.explain(),
        "memory_free": psutil.virtual_memory().available,
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "adapters": [report.to_json() for report in adapters()],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _compiled_kernels() -> dict[str, bool]:
    """Numba kernel -> whether its machine code is in the cache (else the first use compiles it)."""
    import importlib
    import pkgutil

    from dpq_core import kernels

    found: dict[str, bool] = {}
    for module_info in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        try:
            module = importlib.import_module(module_info.name)
        except ImportError:
            continue  # Triton is not everywhere
        short = module_info.name.rpartition(".")[2]
        for name, value in vars(module).items():
            cache = getattr(getattr(value, "stats", None), "cache_path", None)
            if cache is not None:
                index = f"{short}.{name}-*.nbi"
                found[f"{short}.{name}"] = any(Path(cache).glob(index))
    return dict(sorted(found.items()))


def _kernels(kernels: dict[str, bool]) -> str:
    missing = [name for name, compiled in kernels.items() if not compiled]
    if not missing:
        return f"all {len(kernels)} compiled"
    return f"{len(kernels) - len(missing)} of {len(kernels)} compiled; the first use compiles them"
