"""Request: a call of a verb with its arguments, its adapter and the adapter's options.

The keywords of a call are the fields of the verb's arguments class and the adapter's options; a
recipe holds either kind. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dpq_core.errors import ANY, AdapterError, Hint, SourceError, UsageError
from dpq_core.jobs import recipe
from dpq_core.jobs.arguments import check_required, names_of, sources_of
from dpq_core.jobs.spec_arguments import RunArguments
from dpq_core.nearest import nearest
from dpq_core.plugin import options, registry
from dpq_core.run import Progress, Run, Stream

if TYPE_CHECKING:
    from dpq_core.artifact import Artifact, ArtifactFile
    from dpq_core.plugin.adapter import Adapter

A = TypeVar("A", bound=RunArguments)


@dataclass(frozen=True)
class Request(Generic[A]):
    """One call of a verb.

    Attributes:
        arguments: arguments of the verb.
        adapter: adapter of the source's domain.
        own: the adapter's options by verb, for verbs where it has any.
    """

    arguments: A
    adapter: Adapter
    own: Mapping[str, Any]

    @contextmanager
    def run(self, progress: Progress, stream: Stream | None = None) -> Iterator[Run]:
        """A context with the job's ``Run``, in which a missing dependency becomes a pip command.

        Raises:
            SpecError: the device is unknown or missing; raised before any work is done.
        """
        from dpq_core import device

        device.resolve(self.arguments.device)
        with registry.explain_missing(self.adapter.name):
            args = self.arguments
            yield Run(device=args.device, seed=args.seed, progress=progress, stream=stream)


def request(cls: type[A], keywords: Mapping[str, Any]) -> Request[A]:
    """Make a request from keywords: read the recipe, find the adapter and check its options.

    Args:
        cls: the verb's arguments class.
        keywords: its fields, ``recipe`` (a path), ``data`` (whether there is any, or what; see
            ``dpq.data``) and the adapter's options.

    Raises:
        SpecError: an unknown or missing argument, a value out of range, or a mistake in the recipe.
        AdapterError: the adapter is unknown, or nothing says which it is.
    """
    core, extra, contents = split(cls, keywords)
    check_required(cls, core)
    arguments = cls(**core)
    adapter = adapter_of(arguments.adapter, *sources_of(cls, vars(arguments)))
    for verb in option_classes(cls, adapter).values():  # one word, one meaning: of both
        shared = frozenset(names_of(verb)) & frozenset(names_of(cls))
        extra |= {n: v for n in shared if (v := getattr(arguments, n)) is not None}
    if contents is not None:
        extra = {**recipe.adapter_options(contents, cls, adapter, extra), **extra}
    return Request(arguments, adapter, own_options(cls, adapter, extra))


def split(
    cls: type[RunArguments], keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], recipe.Contents | None]:
    """Split keywords into the verb's, all others, and the contents of the recipe."""
    names = names_of(cls)
    given = {name: value for name, value in keywords.items() if name not in ("recipe", "data")}
    data = keywords.get("data")
    if isinstance(data, bool):
        given["data"] = data
    elif data is not None:
        given = {**data.options, **({"data": True} if "data" in names else {}), **given}
    core = {name: _plain(value) for name, value in given.items() if name in names}
    extra = {name: value for name, value in given.items() if name not in names}
    path = keywords.get("recipe")
    if path is None:
        return core, extra, None
    contents = recipe.read(Path(path), cls)
    return recipe.merged(contents, core), extra, contents


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def own_options(
    cls: type[RunArguments], adapter: Adapter, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The adapter's options by verb: an instance of each options class, with defaults.

    Raises:
        SpecError: no verb of the call has such an option, or a class refuses a value.
    """
    classes = option_classes(cls, adapter)
    shares: dict[str, dict[str, Any]] = {verb: {} for verb in classes}
    for name, value in extra.items():
        owners = [verb for verb, own in classes.items() if name in names_of(own)]
        if not owners:
            known = [*names_of(cls), *(n for own in classes.values() for n in names_of(own))]
            raise UsageError(
                f"unknown option {name!r}; {nearest(name, known)}the options of adapter "
                f"{adapter.name!r} here: "
                + (", ".join(n for own in classes.values() for n in names_of(own)) or "none")
            )
        shares[owners[0]][name] = _option_value(classes[owners[0]], name, value)
    return {verb: own(**shares[verb]) for verb, own in classes.items()}


def _option_value(own: type, name: str, value: Any) -> Any:
    """A value in the type of its option: a single item becomes a tuple, a path a text."""
    (option,) = (o for o in options.describe(own) if o.field == name)
    if option.repeated:
        items = value if isinstance(value, list | tuple) else (value,)
        return tuple(option.kind(item) for item in items)
    return str(value) if option.kind is str and isinstance(value, Path) else value


def option_classes(cls: type[RunArguments], adapter: Adapter) -> dict[str, type]:
    """The adapter's options classes by verb, for the verbs whose options a call can give."""
    return {verb: adapter.options[verb] for verb in cls.verbs if verb in adapter.options}


def is_artifact(source: str) -> bool:
    """Whether a source is an artifact: a folder or a single file that ``compress`` wrote."""
    from dpq_core.artifact import Artifact, ArtifactFile

    return Artifact.is_artifact(source) or ArtifactFile.is_artifact_file(source)


def open_artifact(source: str) -> Artifact | ArtifactFile:
    """Open an artifact, a folder or a single file; its contents are not read.

    Raises:
        ArtifactError: the artifact is missing, half-written, damaged or hostile.
    """
    from dpq_core.artifact import Artifact, ArtifactFile

    single = Path(source).is_file() or source.endswith(ArtifactFile.SUFFIX)
    return ArtifactFile.open(source) if single else Artifact.open(source)


def adapter_of(name: str | None, *sources: str) -> Adapter:
    """The named adapter, or that of the sources.

    Without a name it is the adapter with which the first artifact was made, or that ships the first
    built-in model, or that alone recognizes the first of the files and folders.

    Raises:
        AdapterError: neither a name nor a source gives the adapter, or the two disagree.
        SourceError: a source is needed to find the adapter, and does not exist.
    """
    name = None if name is None else registry.canonical_name(name)
    first = ""
    for source in sources:
        if not is_artifact(source) and not Path(f"{source}.partial").is_dir():
            continue
        made_with = open_artifact(source).manifest.adapter  # raises where it is half-written
        if first and made_with != name:
            raise AdapterError(
                f"{first} was made with adapter {name!r}, {source} with {made_with!r}; "
                "give models of one domain"
            )
        if name not in (None, made_with):
            raise AdapterError(
                f"{source} was made with adapter {made_with!r}", Hint.of("drop {}", adapter=name)
            )
        name, first = made_with, source
    name = name or _owner(sources)
    return _recognizing(sources) if name is None else registry.load(name)


def _recognizing(sources: Sequence[str]) -> Adapter:
    """The only adapter that recognizes the first source that exists on this machine.

    Raises:
        AdapterError: no adapter recognizes it, or several do.
        SourceError: no source exists.
    """
    paths = [path for source in sources if (path := Path(source).expanduser()).exists()]
    if not paths:
        raise _missing(sources[0])
    adapters = registry.recognizing(paths[0])
    if len(adapters) == 1:
        return adapters[0]
    if adapters:
        names = " and ".join(adapter.name for adapter in adapters)
        raise AdapterError(
            f"{paths[0]} is recognized by the adapters {names}",
            Hint.of("choose one with {}", adapter=ANY),
        )
    raise AdapterError(
        f"{paths[0]} is not a dpq artifact, and no adapter recognizes it "
        f"({registry.what_is_recognized()})",
        Hint.of("say its domain with {} (installed: " + _installed() + ")", adapter=ANY),
    )


def _missing(source: str) -> SourceError:
    """The error for a source that does not exist here, and may be a hub id."""
    if source.startswith(("/", ".", "~")):
        return SourceError(f"{source}: no such file or folder")
    return SourceError(
        f"{source}: no such file or folder",
        Hint.of(
            "if it is a hub id, say its domain with {} (installed: " + _installed() + ")",
            adapter=ANY,
        ),
    )


def _installed() -> str:
    """The names of all installed adapters, for messages."""
    return ", ".join(sorted({entry.name for entry in registry.available()})) or "none"


def _owner(sources: Sequence[str]) -> str | None:
    """The adapter of the first built-in model among the sources."""
    from dpq_core.plugin.builtin import BUILTIN_SCHEME

    for source in sources:
        if source.startswith(BUILTIN_SCHEME):
            shipped = registry.builtins()
            if (model := source.removeprefix(BUILTIN_SCHEME)) not in shipped:
                names = ", ".join(f"{BUILTIN_SCHEME}{n}" for n in sorted(shipped)) or "none"
                raise AdapterError(f"no adapter ships {source}; there are: {names}")
            return shipped[model]
    return None


def size_on_disk(adapter: Adapter, source: str) -> int:
    """Size in bytes of an artifact or file, or of the tensors and side files of another source."""
    if is_artifact(source):
        return open_artifact(source).nbytes
    if Path(source).is_file():
        return Path(source).stat().st_size
    checkpoint = adapter.open(source)
    tensors = sum(info.nbytes for info in checkpoint.tensors.values())
    return tensors + sum(path.stat().st_size for path in checkpoint.side_files.values())
