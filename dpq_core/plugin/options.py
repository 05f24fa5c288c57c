"""Options of an adapter's verb: a frozen dataclass, parsed from command-line flags.

A field ``max_new_tokens: int = 64`` becomes ``--max-new-tokens 64``; a bool becomes
``--flag/--no-flag``; a ``tuple[str, ...]`` takes one or more values after its
flag, or is given by repeating it.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dpq_core.errors import AdapterError, SpecError
from dpq_core.nearest import nearest

T = TypeVar("T")

KINDS: tuple[type, ...] = (int, float, str, bool, Path)
"""Types of a field, or of an item of a tuple field."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of an options class, with its flag and help.

    Attributes:
        field: name of the dataclass field.
        kind: int, float, str, bool or Path.
        repeated: whether the field is a tuple, so that the flag can be given many times.
        default: value where the flag is not given.
        help: one line from the field's ``metadata["help"]``.
        minimum: smallest value, from the field's ``metadata["minimum"]``; None for no limit.
        required: whether there is no default.
    """

    field: str
    kind: type
    repeated: bool
    default: Any
    help: str
    minimum: float | None = None
    required: bool = False

    @property
    def flag(self) -> str:
        """The flag, such as ``--max-new-tokens``."""
        return "--" + self.field.replace("_", "-")

    @property
    def usage(self) -> str:
        """The usage: ``--limit INT``, ``--tasks STR (repeatable)`` or ``--raw/--no-raw``."""
        if self.kind is bool:
            return f"{self.flag}/--no-{self.flag[2:]}"
        repeat = " (repeatable)" if self.repeated else ""
        return f"{self.flag} {self.kind.__name__.upper()}{repeat}"


def describe(cls: type, *, required: bool = False) -> tuple[Option, ...]:
    """The options of an options class, in the order of its fields.

    Args:
        cls: a frozen dataclass.
        required: whether fields may lack a default.

    Raises:
        AdapterError: the class is not a frozen dataclass, or a field has no default, no help or a
            type that no flag can have. These are mistakes of the adapter's author.
    """
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise AdapterError(f"options class {cls.__name__} must be a frozen dataclass")
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return tuple(_option(cls, field, hints[field.name], required) for field in fields)


def parse(cls: type[T], argv: Sequence[str]) -> T:
    """An instance of ``cls`` made of command-line words such as ``--context 512 --no-raw``.

    Raises:
        SpecError: as ``values``, or the class refuses a value.
    """
    return cls(**values(cls, argv))


def values(cls: type, argv: Sequence[str]) -> dict[str, Any]:
    """The values that command-line words give to fields of ``cls``, by field.

    Raises:
        SpecError: an unknown flag, a missing or malformed value, or a flag given twice.
    """
    options = describe(cls)
    flags = {option.flag: option for option in options}
    negations = {f"--no-{o.flag[2:]}": o for o in options if o.kind is bool}
    given: dict[str, Any] = {}
    words = list(argv)
    while words:
        flag, equals, attached = words.pop(0).partition("=")
        option = flags.get(flag) or negations.get(flag)
        if option is None:
            raise SpecError(_unknown(flag, [*flags, *negations]))
        if option.kind is bool:
            if equals:
                raise SpecError(f"option {flag} takes no value; write {option.usage}")
            value: Any = flag == option.flag
        elif not equals and not words:
            raise SpecError(f"option {flag} needs a value: {option.usage}")
        else:
            value = _convert(option, attached if equals else words.pop(0))
        if option.repeated:
            more = list(itertools.takewhile(_is_value, [] if equals else words))
            del words[: len(more)]
            items = (value, *(_convert(option, word) for word in more))
            given[option.field] = (*given.get(option.field, ()), *items)
        elif option.field in given:
            raise SpecError(f"option {flag} is given twice")
        else:
            given[option.field] = value
    return given


def _option(cls: type, field: dataclasses.Field[Any], hint: Any, required: bool) -> Option:
    where = f"options class {cls.__name__}: field {field.name!r}"
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        default = field.default
    elif required:
        default = None
    else:
        raise AdapterError(f"{where} needs a default")
    if not field.metadata.get("help"):
        raise AdapterError(f'{where} needs metadata={{"help": "..."}}')
    kind, repeated = _kind(hint)
    if kind not in KINDS or (repeated and kind is bool):
        raise AdapterError(
            f"{where} has type {hint}; use int, float, str, bool, Path, one of them or None, "
            "or a tuple such as tuple[str, ...]"
        )
    return Option(
        field=field.name,
        kind=kind,
        repeated=repeated,
        default=default,
        help=field.metadata["help"],
        minimum=field.metadata.get("minimum"),
        required=field.default is field.default_factory is dataclasses.MISSING,
    )


def _kind(hint: Any) -> tuple[Any, bool]:
    """The kind of a type and whether it is a tuple: (int, False) for ``int | None``."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
        return _kind(inner[0]) if len(inner) == 1 else (hint, False)
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        return (args[0], True) if args[1:] == (Ellipsis,) else (hint, False)
    return hint, False


def _convert(option: Option, word: str) -> Any:
    try:
        return option.kind(word)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}[option.kind]
        raise SpecError(f"option {option.flag}: {word!r} is not {kind}") from None


def _is_value(word: str) -> bool:
    """Whether a word after the first value of a flag is a further value, and not the next flag."""
    return not word.startswith("-")


def _unknown(word: str, flags: Sequence[str]) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    if not flags:
        return f"unknown option {word}; this adapter has no options here"
    return f"unknown option {word}; {nearest(word, flags)}the adapter's options: {', '.join(flags)}"
