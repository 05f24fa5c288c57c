"""Reading of recipe files: plain, checked values from YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpq_core.errors import SpecError
from dpq_core.nearest import nearest

VERSION = 1
"""Version of the meaning of a recipe's keys."""

MOST_BYTES = 1 << 20
"""Largest size of a recipe; a model that is given by mistake is larger."""

Scalar = str | int | float | bool


def read(path: Path, where: str) -> Mapping[Any, Any]:
    """Read the mapping in a YAML file, which may hold plain values only; nothing is executed.

    Raises:
        SpecError: the file is missing, too large, not YAML, no mapping, or of another version.
    """
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A loader of plain values that refuses duplicate keys."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"{key!r} is given twice")
            return super().construct_mapping(node, deep)

    try:
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(f"{where}: more than {MOST_BYTES:,} bytes; this is no recipe")
        content = yaml.load(path.read_text("utf-8"), Loader)
    except OSError as error:
        raise SpecError(f"{where}: {error.strerror or error}") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise SpecError(
            f"{where}: cannot be read as YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict):
        raise SpecError(f"{where}: write one option per line, such as `bits: 2`")
    version = content.pop("version", None)
    if version != VERSION or isinstance(version, bool):
        problem = "has no version" if version is None else f"version {version!r} is not known"
        raise SpecError(f"{where}: {problem}; write `version: {VERSION}`")
    return content


def flat(content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The mapping with ``_`` for ``-`` in its keys, as in Python.

    Raises:
        SpecError: a key is given twice, or has no value.
    """
    given: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in given:
            raise SpecError(f"{where}: {name} is given twice")
        if value is None:
            raise SpecError(f"{where}: {key} has no value; leave it out")
        given[name] = value
    return given


def fields_of(content: Any, where: str) -> Iterator[tuple[str, Scalar]]:
    """The fields in the mapping ``spec``, nested ones as ``pool.tau``, with their values.

    Raises:
        SpecError: a field is unknown, or a value is not a single one.
    """
    from dpq_core.spec import QuantSpec

    if not isinstance(content, dict):
        raise SpecError(f"{where}: spec: write fields of QuantSpec below it, such as `stages: 2`")
    fields = dataclasses.asdict(QuantSpec())
    for key, value in content.items():
        if key not in fields:
            raise SpecError(unknown(f"{where}: spec", str(key), fields))
        nested = fields[key]
        if not isinstance(value, dict):
            yield key, scalar(value, f"{where}: spec: {key}")
            continue
        if not isinstance(nested, dict):
            raise SpecError(f"{where}: spec: {key} is one value, not several")
        for inner, setting in value.items():
            if inner not in nested:
                raise SpecError(unknown(f"{where}: spec: {key}", str(inner), nested))
            yield f"{key}.{inner}", scalar(setting, f"{where}: spec: {key}.{inner}")


def scalar(value: Any, where: str) -> Scalar:
    """Check that a value is a single one; returns it.

    Raises:
        SpecError: it is a list, a mapping or a date.
    """
    if not isinstance(value, Scalar):
        raise SpecError(f"{where}: write one value, not {type(value).__name__}")
    return value


def unknown(where: str, key: str, known: Iterable[str]) -> str:
    """The message about an unknown key, with the nearest known ones or all."""
    names = sorted(known)
    hint = nearest(key, names).strip() or f"known: {', '.join(names)}"
    return f"{where}: unknown key {key!r}; {hint}"
