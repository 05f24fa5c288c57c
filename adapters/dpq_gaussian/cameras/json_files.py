"""Checked values from the JSON files of other programs, with one clear error line each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpq_core.errors import SourceError
from dpq_gaussian.cameras.camera import Vectors

MAX_BYTES = 1 << 28
"""Larger camera files are refused; ten thousand cameras take about 10 MB."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".webp")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        SourceError: it cannot be read, is too large or is not JSON.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path}: larger than {MAX_BYTES >> 20} MiB; not a camera file")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """``value`` if it is an object.

    Raises:
        SourceError: it is not.
    """
    if not isinstance(value, dict):
        raise SourceError(f"{where}: an object is expected, not {_shown(value)}")
    return value


def sequence(value: Any, where: str) -> Sequence[Any]:
    """``value`` if it is a list that holds anything.

    Raises:
        SourceError: it is not.
    """
    if not isinstance(value, list) or not value:
        raise SourceError(f"{where}: a list with entries is expected, not {_shown(value)}")
    return value


def number(entry: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """Reads a finite number from a JSON object.

    Raises:
        SourceError: it is missing, or something else.
    """
    value = entry.get(key, default)
    if value is None:
        raise SourceError(f"{where}: {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SourceError(f"{where}: {key!r} must be a finite number, not {_shown(value)}")
    return float(value)


def text(entry: Mapping[str, Any], key: str, where: str) -> str:
    """A string of an object, numbers included.

    Raises:
        SourceError: it is missing, or something else.
    """
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SourceError(f"{where}: {key!r} must be a name, not {_shown(value)}")
    return str(value)


def array(
    entry: Mapping[str, Any], key: str, where: str, shapes: Sequence[tuple[int, ...]]
) -> Vectors:
    """A nested list of finite numbers with one of some shapes.

    Raises:
        SourceError: it is missing, or something else.
    """
    try:
        numbers: Vectors = np.array(entry.get(key), dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape not in shapes or not np.isfinite(numbers).all():
        expected = " or ".join("x".join(str(n) for n in shape) for shape in shapes)
        raise SourceError(f"{where}: {key!r} must be {expected} finite numbers")
    return numbers


def find_image(folder: Path, name: str) -> Path | None:
    """The photograph called ``name``, with or without suffix, in a folder, its images or views."""
    if not name or "\0" in name:
        return None
    for home in (folder, folder / "images", folder / "views"):
        for candidate in (home / name, *(home / (name + suffix) for suffix in IMAGE_SUFFIXES)):
            try:
                if candidate.is_file():
                    return candidate
            except OSError:  # a name that no file can have
                return None
    return None


def _shown(value: Any) -> str:
    shown = json.dumps(value) if value is not None else "nothing"
    return shown if len(shown) <= 40 else shown[:37] + "..."
