"""``dpq doctor``: what this machine has, for people and for bug reports."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from dpq_cli import render
from dpq_cli.commands.adapters import state
from dpq_cli.shared import Json
from dpq_cli.sizes import format_size
from dpq_core.plugin import registry
from dpq_core.version import __version__

LIBRARIES = ("torch", "numba", "numpy", "safetensors", "triton", "transformers", "lm_eval")


def command(as_json: Json = False) -> None:
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

    return {
        "dpq": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "devices": _devices(),
        "threads": {"torch": torch.get_num_threads()},
        "kernels": _compiled_kernels(),
        "memory_free": psutil.virtual_memory().available,
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "adapters": [state(entry) for entry in registry.available()],
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
    for module_info in pkgutil.iter_modules(kernels.__path__):
        try:
            module = importlib.import_module(f"{kernels.__name__}.{module_info.name}")
        except ImportError:
            continue  # Triton is not everywhere
        for name, value in vars(module).items():
            cache = getattr(getattr(value, "stats", None), "cache_path", None)
            if cache is not None:
                index = f"{module_info.name}.{name}-*.nbi"
                found[f"{module_info.name}.{name}"] = any(Path(cache).glob(index))
    return dict(sorted(found.items()))


def _kernels(kernels: dict[str, bool]) -> str:
    missing = [name for name, compiled in kernels.items() if not compiled]
    if not missing:
        return f"all {len(kernels)} compiled"
    return f"{len(kernels) - len(missing)} of {len(kernels)} compiled; the first use compiles them"
