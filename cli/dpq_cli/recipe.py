"""``--recipe FILE.yaml``: the options of a command, its adapter and its spec, kept in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_cli.recipe_file import Scalar, fields_of, flat, read, scalar, unknown
from dpq_core.errors import SpecError
from dpq_core.plugin import options
from dpq_core.spec import parse_changes

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import Adapter

REST = "dpq.recipe"
"""Key of ``Rest`` in a context's ``meta``."""

LISTS = ("set", "override")
"""Options that the command line adds to, instead of replacing them."""

SIZES = ("bits", "d", "target_size")
"""Each decides how many bytes there are: one on the command line replaces all of a recipe."""

NAMES = {"kmeans.iterations": "iterations", "kmeans.init": "init"}
"""Fields of a spec that have options of other names."""

SHOWS = {"plan": "compress"}
"""Command -> the one whose recipe it takes: what only that one has a use for is passed over."""


@dataclass(frozen=True)
class Rest:
    """What a recipe holds beside the options of its command.

    Attributes:
        where: start of messages about it.
        lists: of ``LISTS``, in the form of the command line.
        others: keys that only the adapter can know.
        known: the command's own keys.
    """

    where: str
    lists: Mapping[str, list[str]]
    others: Mapping[str, Any]
    known: tuple[str, ...]


def apply(ctx: typer.Context, value: Path | None) -> Path | None:
    """Make the recipe the defaults of the command; called before all other options are read.

    Raises:
        SpecError: it cannot be read, or a value does not fit its option.
    """
    if value is None:
        return None
    where = f"recipe {value}"
    given = flat(read(value, where), where)
    params = _params(ctx.command, ctx)
    lists: dict[str, list[str]] = {name: [] for name in LISTS}
    defaults: dict[str, Any] = {}
    for key, setting in _of_spec(given, params, where):
        name = NAMES.get(key, key)
        if name not in params or name in LISTS:
            lists["set"].append(f"{key}={_word(setting)}")
        elif name in given:
            raise SpecError(f"{where}: {name} is given twice, once in spec or set")
        else:
            given[name] = setting
    others = {key: given.pop(key) for key in set(given) - set(params)}
    for key, setting in given.items():
        found = _converted(ctx, params[key], setting, f"{where}: {key}")
        if key in LISTS:
            lists[key] += found
        else:
            defaults[params[key].name] = found
    ctx.default_map = defaults
    ctx.meta[REST] = Rest(where, lists, others, tuple(params))
    return value


Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE.yaml",
        is_eager=True,
        callback=apply,
        help="Options from a file; those of the command line win.",
    ),
]


def added(
    ctx: typer.Context, param: typer.CallbackParam, value: list[str] | None
) -> list[str] | None:
    """The callback of ``LISTS``: what the recipe has, then what the command line adds to it."""
    rest: Rest | None = ctx.meta.get(REST)
    before = rest.lists[_key(param)] if rest else []
    return [*before, *(value or [])] or None


def instead(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """The callback of ``SIZES``: one on the command line replaces all of the recipe.

    What the command line has is read first.
    """
    source = ctx.get_parameter_source(str(param.name))
    if REST in ctx.meta and ctx.default_map and source and source.name == "COMMANDLINE":
        for name in SIZES:
            ctx.default_map.pop(name, None)
    return value


def words(ctx: typer.Context, adapter: Adapter, *verbs: str) -> list[str]:
    """The adapter's options as words: those of the recipe that the command line does not replace.

    Args:
        ctx: of the command; its ``args`` are what the command line says.
        adapter: whose options they are.
        verbs: whose options the command takes.

    Raises:
        SpecError: the recipe has a key that neither the command nor the adapter knows, or a value
            that does not fit.
    """
    rest: Rest | None = ctx.meta.get(REST)
    if rest is None:
        return list(ctx.args)
    own = {o.field: o for o in _own(adapter, verbs)}
    passed = _passed_over(ctx, adapter)
    said = {word.partition("=")[0] for word in ctx.args}
    found: list[str] = []
    for key, value in rest.others.items():
        if key in own:
            option = own[key]
            if not said & {option.flag, f"--no-{option.flag[2:]}"}:
                found += _spelled(option, value, f"{rest.where}: {key}")
        elif key not in passed:
            raise SpecError(
                unknown(rest.where, key, (*rest.known, *own, *["spec"] * ("set" in rest.known)))
            )
    return [*found, *ctx.args]


def _of_spec(
    given: dict[str, Any], params: Mapping[str, Any], where: str
) -> Iterator[tuple[str, Scalar]]:
    """Fields of the spec and their values; ``spec`` and ``set`` are taken out of ``given``.

    An option of the command line must win over either, so those that have options become these.
    """
    if "set" not in params:
        return
    yield from fields_of(given.pop("spec", {}), where)
    for text in _converted(None, params["set"], given.pop("set", []), f"{where}: set"):
        try:
            changes = parse_changes(text)
        except SpecError as error:
            raise SpecError(f"{where}: set: {error}") from None
        for key, value in changes.items():
            inner = value if isinstance(value, dict) else {"": value}
            yield from ((f"{key}.{name}".removesuffix("."), v) for name, v in inner.items())


def _params(command: Any, ctx: typer.Context) -> dict[str, Any]:
    """Key -> the parameter of a command that it sets."""
    found = {_key(p): p for p in command.get_params(ctx)}
    return {key: p for key, p in found.items() if key not in ("help", "recipe")}


def _key(param: Any) -> str:
    """``--target-size`` is the key ``target_size``; an argument has its own name."""
    long = [o for o in param.opts if o.startswith("--")]
    return long[0][2:].replace("-", "_") if long else str(param.name)


def _converted(ctx: typer.Context | None, param: Any, value: Any, where: str) -> Any:
    """The value as the option's type reads it from the command line.

    Raises:
        SpecError: it does not.
    """
    if getattr(param, "multiple", False):
        items = value if isinstance(value, list) else [value]
        return [_text(item, where) for item in items]
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise SpecError(f"{where}: write true or false, not {value!r}")
        return value
    text = _text(value, where)
    try:
        param.process_value(ctx, text)
    except Exception as error:  # click's own or the one in typer: what counts is its message
        message = getattr(error, "message", None)
        if message is None:
            raise
        raise SpecError(f"{where}: {text!r}: {message}") from None
    return text


def _spelled(option: options.Option, value: Any, where: str) -> list[str]:
    """An adapter's option as words of the command line.

    Raises:
        SpecError: the value is not of the option's type.
    """
    if option.kind is bool:
        if not isinstance(value, bool):
            raise SpecError(f"{where}: write true or false, not {value!r}")
        return [option.flag if value else f"--no-{option.flag[2:]}"]
    items = value if isinstance(value, list) and option.repeated else [value]
    found = [_text(item, where) for item in items]
    for text in found:
        try:
            option.kind(text)
        except ValueError:
            raise SpecError(f"{where}: {text!r} does not fit {option.usage}") from None
    return [f"{option.flag}={text}" for text in found]


def _text(value: Any, where: str) -> str:
    if isinstance(scalar(value, where), bool):
        raise SpecError(f"{where}: {_word(value)} is no value of this option")
    return str(value)


def _word(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _own(adapter: Adapter, verbs: Iterable[str]) -> Iterator[options.Option]:
    for verb in verbs:
        if (cls := adapter.options.get(verb)) is not None:
            yield from options.describe(cls)


def _passed_over(ctx: typer.Context, adapter: Adapter) -> set[str]:
    """Keys of the command that this one shows the effect of, and of its adapter."""
    shown = SHOWS.get(str(ctx.info_name))
    if shown is None or ctx.parent is None:
        return set()
    command = ctx.parent.command.commands[shown]  # type: ignore[attr-defined]
    return {*_params(command, ctx), *(o.field for o in _own(adapter, adapter.options))}
