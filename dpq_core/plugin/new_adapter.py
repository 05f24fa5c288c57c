"""A new adapter's package: a complete plugin to start from, which passes its own tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dpq_core.errors import REPLACE, AdapterError, SpecError
from dpq_core.plugin import registry

_TEMPLATES = Path(__file__).with_name("templates")

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

RESERVED = "new"
"""The word after ``dpq adapters`` that is no adapter's name."""


@dataclass(frozen=True)
class NewPackage:
    """The package that was written.

    Attributes:
        folder: its folder, to be installed with pip.
        files: its files.
    """

    folder: Path
    files: tuple[Path, ...]


def new_adapter(
    name: str, output: str | Path | None = None, *, overwrite: bool = False
) -> NewPackage:
    """Write the package of a new adapter: project file, adapter, contract tests and a README.

    Args:
        name: name of the adapter, such as ``speech``: lower-case words joined by hyphens.
        output: folder of the package; None for ``dpq-NAME``.
        overwrite: write into a folder that is not empty; files of the same names are replaced.

    Raises:
        SpecError: the name cannot be one, or the folder is not empty.
        AdapterError: an installed adapter has the name.
    """
    from jinja2 import Environment, StrictUndefined

    if not _NAME.fullmatch(name) or name == RESERVED:
        raise SpecError(f"{name!r} cannot name an adapter; take words such as speech or vision-vit")
    owners = [entry.distribution for entry in registry.available() if entry.name == name]
    if owners:
        raise AdapterError(f"adapter {name!r} exists already, in {owners[0]}; take another name")
    folder = Path(f"dpq-{name}" if output is None else output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise SpecError(f"{folder}: exists already", REPLACE)
    module = f"dpq_{name.replace('-', '_')}"
    cls = "".join(word.capitalize() for word in name.split("-")) + "Adapter"
    values = {
        "name": name,
        "distribution": f"dpq-{name}",
        "module": module,
        "cls": cls,
        "imports": ", ".join(sorted(("EvaluateOptions", cls))),
        "summary": f"{name} models in a .safetensors file",
        "contract": max(registry.CONTRACTS),
    }
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    files = []
    for template, place in {
        "pyproject.toml.j2": "pyproject.toml",
        "README.md.j2": "README.md",
        "__init__.py.j2": f"src/{module}/__init__.py",
        "adapter.py.j2": f"src/{module}/adapter.py",
        "test_adapter.py.j2": "tests/test_adapter.py",
    }.items():
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(environment.from_string(text).render(values), encoding="utf-8")
        files.append(path)
    marker = folder / "src" / module / "py.typed"
    marker.touch()
    return NewPackage(folder, (*files, marker))
