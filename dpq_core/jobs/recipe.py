"""Recipes: the arguments of a verb, of its adapter and of its spec, kept in a YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.errors import SpecError
from dpq_core.jobs.arguments import CompressArguments, PlanArguments, names_of
from dpq_core.jobs.recipe_file import Scalar, fields_of, flat, scalar, unknown
from dpq_core.jobs.recipe_file import read as read_file
from dpq_core.jobs.spec_arguments import SIZES, RunArguments
from dpq_core.plugin import options
from dpq_core.spec import parse_changes

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter

LISTS = ("set", "override")
"""Arguments to whose recipe values a call adds instead of replacing them."""

ARGUMENT_OF_FIELD = {"kmeans.iterations": "iterations", "kmeans.init": "init"}
"""Fields of a spec that are arguments under other names: field -> argument."""

COMMAND_LINE = ("json",)
"""Keys that only the command line uses."""


@dataclass(frozen=True)
class Contents:
    """The settings of a recipe.

    Attributes:
        where: start of error messages.
        arguments: arguments of the verb, as Python values.
        others: keys that the verb does not know, which may be the adapter's options.
        known: the keys that the verb knows.
        command_line: values of the keys in ``COMMAND_LINE``.
    """

    where: str
    arguments: Mapping[str, Any]
    others: Mapping[str, Any]
    known: tuple[str, ...]
    command_line: Mapping[str, Any]


def read(path: Path, cls: type[RunArguments]) -> Contents:
    """Read the settings in a recipe for a verb.

    Raises:
        SpecError: the file cannot be read, or a value does not fit its argument.
    """
    where = f"recipe {path}"
    given = flat(read_file(path, where), where)
    kinds = {option.field: option for option in options.describe(cls, required=True)}
    lists: dict[str, list[str]] = {name: [] for name in LISTS}
    if "set" in kinds:
        for key, setting in _of_spec(given, kinds["set"], where):
            name = ARGUMENT_OF_FIELD.get(key, key)
            if name not in kinds or name in LISTS:
                lists["set"].append(f"{key}={_word(setting)}")
            elif name in given:
                raise SpecError(f"{where}: {name} is given twice, once in spec or set")
            else:
                given[name] = setting
    shell = {key: given.pop(key) for key in COMMAND_LINE if key in given}
    for key, setting in shell.items():
        if not isinstance(setting, bool):
            raise SpecError(f"{where}: {key}: write true or false, not {setting!r}")
    others = {key: given.pop(key) for key in list(given) if key not in kinds}
    arguments: dict[str, Any] = {}
    for key, setting in given.items():
        value = _value(kinds[key], setting, f"{where}: {key}")
        if key in LISTS:
            lists[key] += value
        else:
            arguments[key] = value
    arguments |= {key: tuple(value) for key, value in lists.items() if value}
    return Contents(where, arguments, others, (*kinds, *COMMAND_LINE), shell)


def merged(contents: Contents, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's arguments, overridden by those of a call; lists are joined."""
    arguments = dict(contents.arguments)
    if any(given.get(name) is not None for name in SIZES):
        arguments = {name: value for name, value in arguments.items() if name not in SIZES}
    joined = {name: (*arguments.get(name, ()), *given.get(name, ())) for name in LISTS}
    return {**arguments, **given, **{name: value for name, value in joined.items() if value}}


def adapter_options(
    contents: Contents, cls: type[RunArguments], adapter: Adapter, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The adapter's options in a recipe, without those that the call gives.

    Raises:
        SpecError: a key that neither the verb nor the adapter knows, or a value that does not fit.
    """
    adapters = {o.field: o for verb in cls.verbs for o in _options_of(adapter, verb)}
    ignored: set[str] = set()
    if cls is PlanArguments:  # a plan takes the recipe of `compress`, whose effect it shows
        ignored = {
            *names_of(CompressArguments),
            *(o.field for v in adapter.options for o in _options_of(adapter, v)),
        }
    chosen: dict[str, Any] = {}
    for key, value in contents.others.items():
        if key in adapters:
            if key not in given:
                chosen[key] = _adapter_value(adapters[key], value, f"{contents.where}: {key}")
        elif key not in ignored:
            spec = ["spec"] if "set" in names_of(cls) else []
            raise SpecError(unknown(contents.where, key, (*contents.known, *adapters, *spec)))
    return chosen


def _options_of(adapter: Adapter, verb: str) -> tuple[options.Option, ...]:
    cls = adapter.options.get(verb)
    return () if cls is None else options.describe(cls)


def _of_spec(
    given: dict[str, Any], lists: options.Option, where: str
) -> Iterator[tuple[str, Scalar]]:
    """The fields of the spec with their values; removes ``spec`` and ``set`` from ``given``.

    Fields that are arguments become arguments, so that those of the call can override them.
    """
    yield from fields_of(given.pop("spec", {}), where)
    for text in _value(lists, given.pop("set", []), f"{where}: set"):
        try:
            changes = parse_changes(text)
        except SpecError as error:
            raise SpecError(f"{where}: set: {error}") from None
        for key, value in changes.items():
            inner = value if isinstance(value, dict) else {"": value}
            yield from ((f"{key}.{name}".removesuffix("."), v) for name, v in inner.items())


def _value(option: options.Option, value: Any, where: str) -> Any:
    """The value of a key, converted to the type of its argument.

    Raises:
        SpecError: the value does not fit.
    """
    if option.repeated:
        return [_text(item, where) for item in (value if isinstance(value, list) else [value])]
    if option.kind is bool:
        if not isinstance(value, bool):
            raise SpecError(f"{where}: write true or false, not {value!r}")
        return value
    text = _text(value, where)
    try:
        converted = option.kind(text)
    except ValueError:
        raise SpecError(f"{where}: {text!r}: write {option.usage}") from None
    if option.minimum is not None and converted < option.minimum:
        raise SpecError(f"{where}: {text!r}: it must be {option.minimum} or more")
    return converted


def _adapter_value(option: options.Option, value: Any, where: str) -> Any:
    """The value of an adapter's option, converted to the type of its field.

    Raises:
        SpecError: the value does not fit.
    """
    if option.kind is bool:
        if not isinstance(value, bool):
            raise SpecError(f"{where}: write true or false, not {value!r}")
        return value
    items = value if isinstance(value, list) and option.repeated else [value]
    try:
        converted = [option.kind(_text(item, where)) for item in items]
    except ValueError:
        raise SpecError(f"{where}: {value!r} does not fit {option.usage}") from None
    return tuple(converted) if option.repeated else converted[0]


def _text(value: Any, where: str) -> str:
    if isinstance(scalar(value, where), bool):
        raise SpecError(f"{where}: {_word(value)} is no value of this option")
    return str(value)


def _word(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
