"""Options and steps that several commands have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_core.errors import AdapterError, SpecError
from dpq_core.plugin import options, registry

if TYPE_CHECKING:
    from dpq_core.artifact import Artifact, ArtifactFile
    from dpq_core.plugin.adapter import Adapter
    from dpq_core.run import Run

Source = Annotated[
    str,
    typer.Argument(help="A dpq artifact, a model folder or file, or builtin:NAME."),
]
AdapterName = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="The domain of the source; see `dpq adapters`."),
]
Device = Annotated[
    str, typer.Option("--device", help="Torch device; auto takes CUDA where there is one.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The only source of randomness.")]
Json = Annotated[bool, typer.Option("--json", help="Machine output on stdout.")]

MORE_OPTIONS = "The adapter adds options of its own after SOURCE; `dpq adapters NAME` lists them."


def is_artifact(source: str) -> bool:
    """Whether the source is something that `dpq compress` wrote."""
    from dpq_core.artifact import Artifact, ArtifactFile

    return Artifact.is_artifact(source) or ArtifactFile.is_artifact_file(source)


def open_artifact(source: str) -> Artifact | ArtifactFile:
    """The artifact of either form, checked but for its contents.

    Raises:
        ArtifactError: it is missing, half-written, damaged or hostile.
    """
    from dpq_core.artifact import Artifact, ArtifactFile

    single = Path(source).is_file() or source.endswith(ArtifactFile.SUFFIX)
    return ArtifactFile.open(source) if single else Artifact.open(source)


def adapter_of(name: str | None, *sources: str) -> Adapter:
    """The adapter asked for, or that of the first artifact or built-in model among the sources.

    Raises:
        AdapterError: no source tells and there is no name, or the two disagree.
    """
    for source in sources:
        if not is_artifact(source) and not Path(f"{source}.partial").is_dir():
            continue
        made_with = open_artifact(source).manifest.adapter  # half-written: this says so
        if name not in (None, made_with):
            raise AdapterError(
                f"{source} was made with adapter {made_with!r}; drop --adapter {name}"
            )
        name = made_with
    name = name or _owner(sources)
    if name is None:
        names = ", ".join(sorted({entry.name for entry in registry.available()})) or "none"
        raise AdapterError(
            f"{sources[0]} is not a dpq artifact: say its domain with --adapter "
            f"(installed: {names})"
        )
    return registry.load(name)


def _owner(sources: Sequence[str]) -> str | None:
    """The adapter of the first built-in model among the sources."""
    from dpq_core.plugin.builtin import BUILTIN_SCHEME

    for source in sources:
        if source.startswith(BUILTIN_SCHEME):
            known = registry.builtins()
            if (model := source.removeprefix(BUILTIN_SCHEME)) not in known:
                names = ", ".join(f"{BUILTIN_SCHEME}{name}" for name in sorted(known)) or "none"
                raise AdapterError(f"no adapter ships {source}; there are: {names}")
            return known[model]
    return None


@contextmanager
def using(adapter: Adapter, *, device: str = "auto", seed: int = 0) -> Iterator[Run]:
    """A Run with a progress meter; a missing dependency becomes its pip command.

    Raises:
        SpecError: the device is unknown or not there, which is said before any work is done.
    """
    from dpq_cli.meter import Meter
    from dpq_core import device as devices
    from dpq_core.run import Run

    devices.resolve(device)
    with registry.explain_missing(adapter.name), Meter() as meter:
        yield Run(device=device, seed=seed, progress=meter)


def adapter_options(adapter: Adapter, verb: str, words: Sequence[str]) -> Any:
    """The adapter's options for ``verb`` from what the command line has left over.

    Raises:
        typer.BadParameter: usage (exit code 2), as for dpq's own options.
    """
    cls = adapter.options.get(verb)
    if cls is None and not words:
        return None
    try:
        if cls is None:
            raise SpecError(f"unknown option {words[0]}; adapter {adapter.name!r} adds none here")
        return options.parse(cls, words)
    except SpecError as error:
        raise typer.BadParameter(f"{error} (see `dpq adapters {adapter.name}`)") from None


def adapter_options_of(
    adapter: Adapter, verbs: Sequence[str], words: Sequence[str]
) -> dict[str, Any]:
    """The adapter's options for several verbs, all given on one command line.

    Raises:
        typer.BadParameter: usage (exit code 2): an option of none of them, or a wrong value.
    """
    known = {
        option.flag: verb
        for verb in reversed(verbs)
        if (cls := adapter.options.get(verb)) is not None
        for option in options.describe(cls)
    }
    shares: dict[str, list[str]] = {verb: [] for verb in verbs}
    owner = verbs[0]
    for word in words:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            owner = known.get(flag) or known.get(flag.replace("--no-", "--", 1)) or verbs[0]
        shares[owner].append(word)
    return {verb: adapter_options(adapter, verb, share) for verb, share in shares.items()}


def size_on_disk(adapter: Adapter, source: str) -> int:
    """Bytes of an artifact or a file, or of the tensors and side files of any other source."""
    if is_artifact(source):
        return open_artifact(source).nbytes
    if Path(source).is_file():
        return Path(source).stat().st_size
    checkpoint = adapter.open(source)
    tensors = sum(info.nbytes for info in checkpoint.tensors.values())
    return tensors + sum(path.stat().st_size for path in checkpoint.side_files.values())
