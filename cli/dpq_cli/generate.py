"""Typer commands made from the arguments classes of the verbs.

A field becomes an argument or a flag of the same name, with the same default and help text. What a
command line says is handed on as keywords; the order of steps is the front door's.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_core.errors import SpecError
from dpq_core.jobs import recipe as recipes
from dpq_core.jobs.arguments import names_of, sources_of
from dpq_core.jobs.spec_arguments import SIZES
from dpq_core.plugin import options

if TYPE_CHECKING:
    from dpq_core.jobs.recipe import Contents
    from dpq_core.plugin.adapter import Adapter

MORE_OPTIONS = "The adapter adds options of its own after {first}; `dpq adapters NAME` lists them."

EXTRA_ARGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose adapter has options of its own."""

_CONTENTS = "dpq.recipe"
"""Key of the recipe's contents in a context's ``meta``."""

_JSON = "as_json"

Draw = Callable[[typer.Context, dict[str, Any], bool], None]
"""Runs a verb and shows its report: context, keywords, whether JSON is wanted."""


def command(
    cls: type,
    help: str,
    run: Draw,
    *,
    recipe: bool = True,
    more: Sequence[inspect.Parameter] = (),
) -> Callable[..., None]:
    """The function that Typer turns into a command.

    Args:
        cls: the verb's arguments class.
        help: what ``--help`` says of it.
        run: called with what was said on the command line.
        recipe: whether there is ``--recipe``.
        more: parameters of the command line alone, about what is shown.
    """

    def function(ctx: typer.Context, **values: Any) -> None:
        as_json = bool(values.pop(_JSON))
        for name in _positional_lists(cls):
            values[name], words = _leading(values[name])
            ctx.args.extend(words)
        run(ctx, _said(ctx, values), as_json)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters[0] = parameters[0].replace(annotation=typer.Context)
    parameters += [*_parameters(cls, recipe=recipe), *more]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    function.__doc__ = help
    return function


def _parameters(cls: type, *, recipe: bool) -> Iterator[inspect.Parameter]:
    """Arguments first, then required flags, then the rest in the order of the fields."""
    described = {option.field: option for option in options.describe(cls, required=True)}
    fields = dataclasses.fields(cls)
    order = sorted(fields, key=lambda f: (not f.metadata.get("positional"), not _required(f)))
    for field in order:
        yield _parameter(field, described[field.name])
    if recipe:
        option = typer.Option(
            "--recipe",
            metavar="FILE.yaml",
            is_eager=True,
            callback=_reader(cls),
            help="Options from a file; those of the command line win.",
        )
        yield _keyword("recipe", Annotated[Path | None, option], None)
    option = typer.Option("--json", help="Machine output on stdout.")
    yield _keyword(_JSON, Annotated[bool, option], False)


def _positional_lists(cls: type) -> list[str]:
    """The fields without a flag that take several words."""
    positional = {f.name for f in dataclasses.fields(cls) if f.metadata.get("positional")}
    described = options.describe(cls, required=True)
    return [o.field for o in described if o.repeated and o.field in positional]


def _leading(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first flag, and the rest, which are options of the adapter."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return list(words[:first]), list(words[first:])


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _parameter(field: dataclasses.Field[Any], option: options.Option) -> inspect.Parameter:
    """The Typer parameter of one field."""
    said = field.metadata
    if said.get("positional"):
        shown: Any = typer.Argument(help=option.help)
        kind: Any = list[option.kind] if option.repeated else option.kind  # type: ignore[name-defined]
        return _keyword(field.name, Annotated[kind, shown], inspect.Parameter.empty)
    flag = f"{option.flag}/--no-{option.flag[2:]}" if _has_negation(field) else option.flag
    flags = [flag, said["short"]] if "short" in said else [flag]
    more: dict[str, Any] = {}
    if said.get("unset"):
        more["show_default"] = said["unset"]
    if option.minimum is not None:
        more["min"] = option.minimum
    if said.get("metavar"):
        more["metavar"] = said["metavar"]
    if field.name in recipes.LISTS:
        more["callback"] = _joined
    elif field.name in SIZES:
        more["callback"] = _replacing
    shown = typer.Option(*flags, help=option.help, **more)
    default = inspect.Parameter.empty if _required(field) else field.default
    kind = option.kind
    if option.repeated:
        kind, default = list[option.kind] | None, None  # type: ignore[name-defined]
    elif default is None:
        kind = option.kind | None
    return _keyword(field.name, Annotated[kind, shown], default)


def _has_negation(field: dataclasses.Field[Any]) -> bool:
    """Whether a flag can also say no: where its default is not off."""
    return "bool" in str(field.type) and field.default is not False


def _said(ctx: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line and its recipe say: values that are not left at their defaults."""
    chosen = {}
    for name, value in values.items():
        source = ctx.get_parameter_source(name)
        if name == "recipe" or source is None or source.name in ("DEFAULT",):
            continue
        chosen[name] = value
    return chosen


def _reader(cls: type) -> Callable[[typer.Context, Path | None], Path | None]:
    """The callback of ``--recipe``: its settings become the defaults of the command."""

    def read(ctx: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            contents = recipes.read(path, cls)
            lists = {name: list(v) for name in recipes.LISTS if (v := contents.arguments.get(name))}
            ctx.default_map = {**contents.arguments, **lists}
            if "json" in contents.command_line:
                ctx.default_map[_JSON] = contents.command_line["json"]
            ctx.meta[_CONTENTS] = contents
        return path

    return read


def _joined(
    ctx: typer.Context, param: typer.CallbackParam, value: list[str] | None
) -> list[str] | None:
    """What the recipe has of a list, then what the command line adds to it."""
    contents: Contents | None = ctx.meta.get(_CONTENTS)
    source = ctx.get_parameter_source(str(param.name))
    if contents is None or source is None or source.name != "COMMANDLINE":
        return value or None
    return [*contents.arguments.get(str(param.name), ()), *(value or [])] or None


def _replacing(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """A size on the command line replaces every size of the recipe; it is read first."""
    source = ctx.get_parameter_source(str(param.name))
    if _CONTENTS in ctx.meta and ctx.default_map and source and source.name == "COMMANDLINE":
        for name in SIZES:
            ctx.default_map.pop(name, None)
    return value


def adapter_options(ctx: typer.Context, cls: type, adapter: Adapter) -> dict[str, Any]:
    """The adapter's options: those of the recipe, and those of the command line, which win.

    Raises:
        typer.BadParameter: usage (exit code 2): an option that there is not, or a wrong value.
        SpecError: the recipe has a key that nobody knows, or a value that does not fit.
    """
    from dpq_core.jobs.request import option_classes

    said = _parsed(option_classes(cls, adapter), list(ctx.args), adapter.name)
    contents: Contents | None = ctx.meta.get(_CONTENTS)
    if contents is None:
        return said
    return {**recipes.adapter_options(contents, cls, adapter, said), **said}


def _parsed(classes: Mapping[str, type], words: Sequence[str], name: str) -> dict[str, Any]:
    """The values that words of the command line give to fields of the options classes."""
    owners = {
        option.flag: verb
        for verb in reversed(list(classes))
        for option in options.describe(classes[verb])
    }
    first = next(iter(classes), "")
    shares: dict[str, list[str]] = {verb: [] for verb in classes} or {first: []}
    owner = first
    for word in words:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            owner = owners.get(flag) or owners.get(flag.replace("--no-", "--", 1)) or first
        shares[owner].append(word)
    chosen: dict[str, Any] = {}
    for verb, share in shares.items():
        try:
            if verb not in classes and share:
                raise SpecError(f"unknown option {share[0]}; adapter {name!r} adds none here")
            if verb in classes:
                values = options.values(classes[verb], share)
                classes[verb](**values)  # refuses what does not fit
                chosen |= values
        except SpecError as error:
            raise typer.BadParameter(
                f"{error.on_the_command_line()} (see `dpq adapters {name}`)"
            ) from None
    return chosen


def adapter_of(cls: Any, keywords: Mapping[str, Any]) -> Adapter:
    """The adapter that a command line means; see ``dpq_core.jobs.request``."""
    from dpq_core.jobs import request

    return request.adapter_of(keywords.get("adapter"), *sources_of(cls, keywords))


def keywords_of(ctx: typer.Context, cls: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of a call of the front door: the verb's and the adapter's."""
    own = adapter_options(ctx, cls, adapter_of(cls, keywords))
    known = names_of(cls)
    return {**{name: value for name, value in own.items() if name not in known}, **keywords}


@contextmanager
def metered() -> Iterator[Any]:
    """A progress callback that draws on stderr."""
    from dpq_cli.meter import Meter

    with Meter() as meter:
        yield meter
