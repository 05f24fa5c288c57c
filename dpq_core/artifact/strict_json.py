"""JSON from untrusted files: bounded size, no duplicate keys, no NaN, typed access."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable
from typing import Any, TypeVar

from dpq_core.errors import ArtifactError

MAX_JSON_VALUES = 4_000_000
"""Bound on the values of one document, checked before parsing: a short text of ``[[],[],...``
would otherwise become objects of twenty times its size."""

MAX_SHOWN = 120

_BAD = ("Cc", "Cs", "Zl", "Zp")  # control, surrogate, line and paragraph separator

T = TypeVar("T")


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        ArtifactError: not UTF-8, not JSON, not an object, too many values, too deeply nested,
            a duplicate key, or a number that is not finite.
    """
    if sum(data.count(mark) for mark in (b"[", b"{", b",")) > MAX_JSON_VALUES:
        raise ArtifactError(f"{where}: more than {MAX_JSON_VALUES} JSON values")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ArtifactError(f"{where}: JSON is nested too deeply") from None
    except ValueError as error:  # bad UTF-8, bad JSON, integers of thousands of digits, our hooks
        raise ArtifactError(f"{where}: not valid JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: not a JSON object but {shown(value)}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {shown(twice)}")
    return result


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is not a finite number")
    return value


def exactly(value: object, keys: Iterable[str], where: str) -> dict[str, Any]:
    """Check that ``value`` is an object with exactly these keys; returns it.

    Raises:
        ArtifactError: it is no object, or a key is missing or unknown.
    """
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: not a JSON object but {shown(value)}")
    expected = set(keys)
    if missing := sorted(expected - set(value)):
        raise ArtifactError(f"{where}: key {shown(missing[0])} is missing")
    if unknown := sorted(set(value) - expected):
        raise ArtifactError(f"{where}: unknown key {shown(unknown[0])}")
    return value


def typed(value: object, kind: type[T], where: str) -> T:
    """Check that the type of ``value`` is exactly ``kind`` (``true`` is no integer); returns it.

    Raises:
        ArtifactError: it is of another type.
    """
    if type(value) is not kind:
        raise ArtifactError(f"{where}: {shown(value)} is not of type {kind.__name__}")
    return value


def integer(value: object, limit: int, where: str) -> int:
    """Check that ``value`` is an integer 0..limit; returns it.

    Raises:
        ArtifactError: it is no integer, negative or too large.
    """
    number = typed(value, int, where)
    if not 0 <= number <= limit:
        raise ArtifactError(f"{where}: {shown(number)} is not in 0..{limit}")
    return number


def text(value: object, limit: int, where: str) -> str:
    """Check that ``value`` is one line of 1..limit UTF-8 bytes without controls; returns it.

    Raises:
        ArtifactError: it is no text, empty, too long or holds such a character.
    """
    string = typed(value, str, where)
    bad = not string.isprintable() and any(unicodedata.category(c) in _BAD for c in string)
    if not string or bad or len(string.encode("utf-8")) > limit:
        raise ArtifactError(f"{where}: {shown(string)} is empty, too long or not one line of text")
    return string


def shape(value: object, max_rank: int, max_elements: int, where: str) -> tuple[int, ...]:
    """Check that ``value`` is a shape with a bounded number of elements; returns it as a tuple.

    Raises:
        ArtifactError: not a list of non-negative integers, or of too many axes or elements.
    """
    axes = typed(value, list, where)
    if len(axes) > max_rank:
        raise ArtifactError(f"{where}: {len(axes)} axes are more than {max_rank}")
    elements = 1
    for axis in axes:
        # The product of the axes that are not zero is bounded too, so that no product overflows.
        elements *= max(1, integer(axis, max_elements, where))
    if elements > max_elements:
        raise ArtifactError(f"{where}: shape {shown(axes)} has more than {max_elements} elements")
    return tuple(axes)


def shown(value: object) -> str:
    """The repr of ``value``, cut to a bounded length, for an error message."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | list | dict) and len(value) > MAX_SHOWN:
        return f"a {type(value).__name__} of length {len(value)}"
    whole = repr(value)
    return whole if len(whole) <= MAX_SHOWN else whole[:MAX_SHOWN] + "..."


def one_line(error: object) -> str:
    """The text of an error as one bounded line of printable characters."""
    whole = str(error)[:400]
    return "".join(c if c.isprintable() else "?" for c in whole)
