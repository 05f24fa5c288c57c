"""Where things are in the checkout."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@cache
def pyproject() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@cache
def package_folders() -> dict[str, Path]:
    """Import name -> folder of every package in the wheel."""
    paths = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return {Path(path).name: ROOT / path for path in paths}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module that is shipped."""
    found = {}
    for folder in package_folders().values():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found
