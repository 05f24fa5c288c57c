"""Sizes as people write and read them: decimal units, as on a disk's label."""

from __future__ import annotations

import re

from dpq_core.errors import SpecError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """``4GB``, ``500 MB`` or ``1.5GiB`` in bytes.

    Raises:
        SpecError: not a number with a known unit, or less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise SpecError(f"size {text!r} is not understood; write for example 500MB or 4GB")
    return size


def format_size(nbytes: float) -> str:
    """``4,096 B``, ``3.41 MB``, ``12.9 GB``: three significant digits above a kilobyte."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} B" if unit == "B" else f"{value:.3g} {unit}"


def format_seconds(seconds: float) -> str:
    """``0.4 s``, ``52 s``, ``3:07``, ``2:10:00``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_shape(shape: tuple[int, ...]) -> str:
    """``4096x11008``, or ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"
