"""Options and steps that several commands have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpq_core import options, registry
from dpq_core.errors import AdapterError, SpecError

if TYPE_CHECKING:
    from dpq_core.adapter import Adapter, Run

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
    from dpq_core.artifact import Artifact

    return Artifact.is_artifact(source)


def adapter_of(name: str | None, *sources: str) -> Adapter:
    """The adapter asked for, or the one that the artifact among the sources was made with.

    Raises:
        AdapterError: there is no artifact to ask and no name, or the two disagree.
    """
    from dpq_core.artifact import Artifact

    for source in sources:
        if not is_artifact(source) and not Path(f"{source}.partial").is_dir():
            continue
        made_with = Artifact.open(source).manifest.adapter  # half-written: this says so
        if name not in (None, made_with):
            raise AdapterError(
                f"{source} was made with adapter {made_with!r}; drop --adapter {name}"
            )
        name = made_with
    if name is None:
        names = ", ".join(sorted({entry.name for entry in registry.available()})) or "none"
        raise AdapterError(
            f"{sources[0]} is not a dpq artifact: say its domain with --adapter "
            f"(installed: {names})"
        )
    return registry.load(name)


@contextmanager
def using(adapter: Adapter, *, device: str = "auto", seed: int = 0) -> Iterator[Run]:
    """A Run with a progress meter; a missing dependency becomes its pip command.

    Raises:
        SpecError: the device is unknown or not there, which is said before any work is done.
    """
    from dpq_cli.meter import Meter
    from dpq_core import device as devices
    from dpq_core.adapter import Run

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


def size_on_disk(adapter: Adapter, source: str) -> int:
    """Bytes of an artifact, or of the tensors and side files of an uncompressed source."""
    from dpq_core.artifact import Artifact

    if Artifact.is_artifact(source):
        return Artifact.open(source).nbytes
    checkpoint = adapter.open(source)
    tensors = sum(info.nbytes for info in checkpoint.tensors.values())
    return tensors + sum(path.stat().st_size for path in checkpoint.side_files.values())
