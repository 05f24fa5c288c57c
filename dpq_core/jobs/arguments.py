# ruff: noqa: RUF009 - argument() and required() return fields, as dataclasses.field() does
"""The arguments of every verb: one frozen dataclass per verb.

``dpq.compress(...)`` and ``dpq compress ...`` are both made from ``CompressArguments``, and so on:
names, defaults and help texts exist once. Nothing here needs torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dpq_core.errors import UsageError
from dpq_core.jobs.spec_arguments import (
    DEVICE,
    SEED,
    RunArguments,
    SpecArguments,
    argument,
    required,
)

CALIBRATED = "A dpq artifact: a folder or a .dpq file."
ANY_SOURCE = "A dpq artifact, a model folder or file, or builtin:NAME."


@dataclass(frozen=True, kw_only=True)
class PlanArguments(SpecArguments):
    """Arguments of ``plan``."""


@dataclass(frozen=True, kw_only=True)
class CompressArguments(SpecArguments):
    """Arguments of ``compress``."""

    output: Path = required("Folder of the artifact, or its .dpq file.", short="-o")
    steps: int | None = argument(
        None,
        "Training steps of a calibration afterwards.",
        unset="with --preset best 100, or what the adapter chooses; else 0",
        minimum=0,
    )
    probe: bool = argument(True, "Store outputs for `dpq inspect --verify`.")
    dry_run: bool = argument(False, "Show what would be stored; write nothing.")
    resume: bool = argument(False, "Continue an interrupted run of the same command.")
    overwrite: bool = argument(False, "Replace OUTPUT.")

    @property
    def calibrates(self) -> bool:
        """Whether the compressed model is trained."""
        return self.preset == "best" if self.steps is None else self.steps > 0


@dataclass(frozen=True, kw_only=True)
class CalibrateArguments(RunArguments):
    """Arguments of ``calibrate``; those of the training are fields of ``CalibrateSettings``."""

    sources: ClassVar[tuple[str, ...]] = ("artifact",)
    verbs: ClassVar[tuple[str, ...]] = ("calibrate",)
    settings: ClassVar[tuple[str, ...]] = (
        *("steps", "mode", "lr", "estep", "every", "candidates", "patience", "save_every"),
        "seed",
    )

    artifact: str = required(CALIBRATED, positional=True)
    output: Path = required("The calibrated artifact, a new one.", short="-o")
    baseline: str | None = argument(
        None,
        "The uncompressed model, the teacher.",
        metavar="SOURCE",
        unset="what ARTIFACT was made of",
    )
    steps: int = argument(1000, "Training steps of the whole.")
    mode: str = argument(
        "auto",
        "block (one after the other), end (the whole), both; auto is both where there are blocks.",
    )
    lr: float = argument(1e-4, "Learning rate, for weights of RMS 0.05.")
    estep: str = argument("icm+pv", "How codes are chosen: icm, pv, icm+pv, blockdiag, l2, none.")
    every: int = argument(100, "Steps between two choices of codes.")
    candidates: int = argument(
        0, "Nearest codewords (2 or 3) between which blocks choose by gradient; 0: off."
    )
    patience: int = argument(0, "Stop after so many validations without a better one; 0: never.")
    save_every: int = argument(200, "Steps between two saved states.")
    resume: bool = argument(False, "Continue an interrupted run of the same command.")
    overwrite: bool = argument(False, "Replace OUTPUT.")


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(RunArguments):
    """Arguments of ``evaluate``."""

    sources: ClassVar[tuple[str, ...]] = ("source", "baseline")
    verbs: ClassVar[tuple[str, ...]] = ("evaluate",)

    source: str = required(ANY_SOURCE, positional=True)
    baseline: str | None = argument(
        None,
        "The uncompressed model: compare with it, and measure it too.",
        metavar="SOURCE",
        unset="none, or the adapter's choice",
    )


@dataclass(frozen=True, kw_only=True)
class CompareArguments(RunArguments):
    """Arguments of ``compare``."""

    sources: ClassVar[tuple[str, ...]] = ("artifacts", "baseline")
    verbs: ClassVar[tuple[str, ...]] = ("evaluate",)

    artifacts: tuple[str, ...] = required(
        "dpq artifacts, model folders or files, or builtin:NAME, all of one domain.",
        positional=True,
    )
    baseline: str | None = argument(
        None,
        "The uncompressed model: compare with it, and measure it too.",
        metavar="SOURCE",
        unset="none, or the adapter's choice",
    )
    speed: bool = argument(False, "Time the models: tokens or denoising steps per second.")
    results: Path | None = argument(
        None, "Folder where results are kept.", unset="dpq/results in the user's cache folder"
    )
    fresh: bool = argument(False, "Compute again what is kept.")


@dataclass(frozen=True, kw_only=True)
class ReportArguments(RunArguments):
    """Arguments of ``report``."""

    sources: ClassVar[tuple[str, ...]] = ("artifacts", "baseline")
    verbs: ClassVar[tuple[str, ...]] = ("evaluate",)

    artifacts: tuple[str, ...] = required("dpq artifacts, all of one domain.", positional=True)
    output: Path = argument(Path("report.html"), "The HTML file; replaced.", short="-o")
    baseline: str | None = argument(
        None,
        "The uncompressed model: compare with it, and measure it too.",
        metavar="SOURCE",
        unset="none, or the adapter's choice",
    )
    peer: tuple[str, ...] = argument(
        (),
        "A further point of the plots, such as `GPTQ 4 bit,120MB,perplexity=21.5`. Repeatable.",
        metavar="NAME,SIZE,METRIC=VALUE",
    )
    measure: bool = argument(True, "Measure quality, as `dpq compare` does.")
    evidence: bool = argument(True, "Let the models make samples to look at.")
    results: Path | None = argument(
        None, "Folder where results are kept.", unset="dpq/results in the user's cache folder"
    )
    fresh: bool = argument(False, "Compute again what is kept.")


@dataclass(frozen=True, kw_only=True)
class SampleArguments(RunArguments):
    """Arguments of ``sample``."""

    verbs: ClassVar[tuple[str, ...]] = ("sample",)

    source: str = required(ANY_SOURCE, positional=True)
    output: Path | None = argument(
        None, "Folder for files, where there are any.", short="-o", unset="no files"
    )


@dataclass(frozen=True, kw_only=True)
class ExportArguments(RunArguments):
    """Arguments of ``export``."""

    verbs: ClassVar[tuple[str, ...]] = ("export",)

    source: str = required(ANY_SOURCE, positional=True)
    output: Path = required("File or folder to write.", short="-o")
    to: str | None = argument(None, "Format, one of the adapter's.", unset="OUTPUT's suffix")
    overwrite: bool = argument(False, "Replace OUTPUT.")


@dataclass(frozen=True, kw_only=True)
class ServeArguments(RunArguments):
    """Arguments of ``serve``."""

    source: str = required(ANY_SOURCE, positional=True)
    host: str = argument("127.0.0.1", "Address to listen at; 0.0.0.0 lets other machines in.")
    port: int = argument(8000, "Port to listen at.", minimum=1)
    engine: str = argument(
        "auto", "What runs the model: compiled, transformers (auto: compiled where it can)."
    )


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Arguments of ``inspect``."""

    path: Path = required("An artifact.", positional=True)
    verify: bool = argument(False, "Check every hash, then the stored probe outputs.")
    device: str = argument("auto", DEVICE)


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Arguments of ``demo``."""

    output: Path = argument(Path("demo-out"), "Folder for the artifacts; replaced.", short="-o")
    device: str = argument("auto", DEVICE)
    seed: int = argument(0, SEED, minimum=0)


VERBS: Mapping[str, type] = {
    "plan": PlanArguments,
    "compress": CompressArguments,
    "calibrate": CalibrateArguments,
    "evaluate": EvaluateArguments,
    "compare": CompareArguments,
    "report": ReportArguments,
    "sample": SampleArguments,
    "export": ExportArguments,
    "serve": ServeArguments,
    "inspect": InspectArguments,
    "demo": DemoArguments,
}
"""Verb -> the dataclass of its arguments."""


def names_of(cls: type) -> tuple[str, ...]:
    """The names of the fields of an arguments class."""
    return tuple(f.name for f in fields(cls))


def sources_of(cls: type[RunArguments], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The sources among the values of a verb's arguments, in the order of ``sources``."""
    given = (values.get(name) or () for name in cls.sources)
    lists = ((v,) if isinstance(v, str | Path) else tuple(v) for v in given)
    return tuple(str(source) for items in lists for source in items)


def check_required(cls: type, given: Iterable[str]) -> None:
    """Refuse a call in which a required argument is missing.

    Raises:
        UsageError: a required argument is missing.
    """
    names = frozenset(given)
    for f in fields(cls):
        if f.default is MISSING and f.name not in names:
            raise UsageError(f"{f.name} is needed: {f.metadata['help']}")


Verb = TypeVar("Verb", bound=Callable[..., Any])


def takes(cls: type) -> Callable[[Verb], Verb]:
    """A decorator of a verb's function; ``help()`` then shows the fields of its arguments class.

    Args:
        cls: the arguments class, whose fields are the keywords that the function passes on.
    """

    def decorate(verb: Verb) -> Verb:
        signature = inspect.signature(verb)
        explicit = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        passed = [f for f in fields(cls) if f.name not in signature.parameters]
        keywords = [
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
            )
            for f in passed
        ]
        options = inspect.Parameter("adapter_options", inspect.Parameter.VAR_KEYWORD)
        lines = "\n".join(f"    {f.name}: {_explained(f)}" for f in passed)
        verb.__doc__ = f"{inspect.cleandoc(verb.__doc__ or '')}\n\nKeyword arguments:\n{lines}\n"
        verb.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*explicit, *keywords, options]
        )
        return verb

    return decorate


def _explained(f: Field[Any]) -> str:
    """The help text of a field, with its default."""
    default = f.metadata.get("unset", f.default)
    return f"{' '.join(str(f.metadata['help']).split())} [default: {default}]"
