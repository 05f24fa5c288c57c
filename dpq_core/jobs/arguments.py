# ruff: noqa: RUF009 - argument() and required() return fields, as dataclasses.field() does
"""Arguments of every verb, each verb's in one frozen dataclass.

``dpq.compress(...)`` and ``dpq compress ...`` are both made from ``CompressArguments``, and so on:
names, defaults and help texts exist once. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from dpq_core.errors import SpecError, UsageError
from dpq_core.sizes import parse_size
from dpq_core.spec import INITS, ORIENTATIONS, PRESETS, SCOPES, QuantSpec, parse_changes, preset

BEST_STEPS = 100
"""Training steps that the preset ``best`` takes after compressing, all of them end to end."""

SIZES = ("bits", "d", "target_size")
"""The arguments that each decide how many bytes there are: only one of them can be given."""

SHARD_SIZE = "4GB"

CALIBRATED = "A dpq artifact: a folder or a .dpq file."
MODEL = "A model folder or file, a hub id, or builtin:NAME."
ANY_SOURCE = "A dpq artifact, a model folder or file, or builtin:NAME."


def argument(default: Any, help: str, **more: Any) -> Any:
    """A field of an arguments class.

    Args:
        default: its default; None where ``unset`` says what happens.
        help: one sentence for ``--help`` and the docs.
        more: ``unset`` (what None means), ``metavar``, ``minimum``, ``short`` (flag of one letter).
    """
    return field(default=default, metadata={"help": help, **more})


def required(help: str, **more: Any) -> Any:
    """A field without a default; ``positional=True`` makes it an argument without a flag."""
    return field(metadata={"help": help, **more})


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Arguments of every verb that runs an adapter.

    Attributes:
        sources: the fields that name a model or an artifact, from which the adapter is known.
        verbs: the adapter's verbs whose options can be given too.
    """

    sources: ClassVar[tuple[str, ...]] = ("source",)
    verbs: ClassVar[tuple[str, ...]] = ()

    adapter: str | None = argument(
        None, "The domain of the source; see `dpq adapters`.", short="-a", unset="from SOURCE"
    )
    device: str = argument("auto", "Torch device; auto takes CUDA where there is one.")
    seed: int = argument(0, "The only source of randomness.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class SpecArguments(RunArguments):
    """Arguments of ``plan`` and ``compress``: how tensors are quantized."""

    verbs: ClassVar[tuple[str, ...]] = ("compress", "calibrate")

    source: str = required(MODEL, positional=True)
    preset: str | None = argument(
        None,
        f"{', '.join(PRESETS)}: the paper's choices are `faithful`; `best` looks at data.",
        unset="fast",
    )
    bits: float | None = argument(
        None,
        "1, 2, 3 or 4: the codes of a preset. Any other number, such as 1.75: all bytes of the "
        "artifact over its weights; a planner spreads them.",
        unset="2",
    )
    target_size: str | None = argument(
        None, "Bytes of the whole artifact, such as 120MB, planned.", unset="no limit"
    )
    d: int | None = argument(None, "Subvector length; not with --bits.", unset="from --bits")
    K: int | None = argument(None, "Codewords per codebook.", unset="from --bits")
    scope: str | None = argument(
        None, f"Who shares a codebook: {', '.join(SCOPES)}, or a number.", unset="the preset's"
    )
    orientation: str | None = argument(
        None, f"Axis of the subvectors: {', '.join(ORIENTATIONS)}.", unset="the preset's"
    )
    iterations: int | None = argument(None, "k-means iterations.", unset="the preset's")
    init: str | None = argument(None, f"First codewords: {', '.join(INITS)}.", unset="the preset's")
    row_scale: bool | None = argument(None, "One scale per output row.", unset="the preset's")
    set: tuple[str, ...] = argument(
        (),
        "Any other field of the spec: stages=2, pool=wkmeans, transform=rht, permute=true, "
        "codebook_dtype=int8, group_scale=true, assignment=ldlq+icm, assignment.sweeps=3. "
        "Repeatable, or several with commas.",
        metavar="KEY=VALUE",
    )
    override: tuple[str, ...] = argument(
        (),
        "Other settings for some tensors: PATTERN=keep, PATTERN=4 (bits) or PATTERN=d=2,K=64. "
        "Repeatable; later ones win.",
        metavar="PATTERN=...",
    )
    shard_size: str = argument(SHARD_SIZE, "Start a new weight file beyond this size.")
    statistics: bool | None = argument(
        None,
        "Choose codes, and what bytes are spent on, by what the layers make of data.",
        unset="with --preset best",
    )

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the arguments about tensors that were given."""
        names = (f.name for f in fields(SpecArguments) if f.name in _ABOUT_TENSORS)
        return tuple(name for name in names if getattr(self, name) not in (None, ()))

    @property
    def has_budget(self) -> bool:
        """Whether a planner chooses a spec per tensor within a number of bytes."""
        return self.target_size is not None or (self.bits is not None and self.bits % 1 != 0)

    @property
    def redistributes(self) -> bool:
        """Whether the bytes of a nominal width may go where data says that they count."""
        return self.preset == "best" and not self.has_budget and self.d is None and self.K is None

    @property
    def target_bytes(self) -> int | None:
        """The size that was asked for, in bytes."""
        return None if self.target_size is None else parse_size(str(self.target_size))

    @property
    def uses_data(self) -> bool:
        """Whether data is looked at while quantizing: as it was said, or else by the preset."""
        return self.preset == "best" if self.statistics is None else self.statistics

    def spec(self) -> QuantSpec:
        """The spec of all tensors; for a planner, what its candidates have in common.

        Raises:
            SpecError: arguments that exclude each other, or a value out of range.
        """
        if sum(getattr(self, name) is not None for name in SIZES) > 1:
            raise SpecError("give one of --bits, --d and --target-size: each decides d")
        if self.has_budget and self.K is not None:
            raise SpecError("--K is for the planner to choose; leave it out, or give --d with it")
        if self.has_budget and self.preset == "faithful":
            raise SpecError("preset faithful has fixed widths: give --bits 1, 2, 3 or 4")
        bits = 2 if self.bits is None or self.has_budget else int(self.bits)
        spec = preset(self.preset or "fast", bits)
        values: dict[str, Any] = {
            "d": self.d,
            "K": self.K,
            "scope": _scope(self.scope),
            "seed": self.seed,
            "orientation": self.orientation,
            "row_scale": self.row_scale,
        }
        kmeans = {"iterations": self.iterations, "init": self.init}
        values["kmeans"] = {
            key: value for key, value in kmeans.items() if value is not None
        } or None
        for text in self.set:
            for key, value in parse_changes(text).items():
                nested = isinstance(value, dict) and isinstance(values.get(key), dict)
                values[key] = {**values[key], **value} if nested else value
        return spec.replace(**{key: value for key, value in values.items() if value is not None})


_ABOUT_TENSORS = (
    *("preset", "bits", "target_size", "d", "K", "scope", "orientation", "iterations", "init"),
    *("row_scale", "set", "override"),
)


def _scope(text: str | int | None) -> str | int | None:
    return int(text) if isinstance(text, str) and text.isdigit() else text


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
        unset="100 with --preset best, else 0",
        minimum=0,
    )
    probe: bool = argument(True, "Store outputs for `dpq inspect --verify`.")
    dry_run: bool = argument(False, "Show what would be stored; write nothing.")
    resume: bool = argument(False, "Continue an interrupted run of the same command.")
    overwrite: bool = argument(False, "Replace OUTPUT.")

    @property
    def calibration_steps(self) -> int:
        """Training steps after compressing; 0 for none."""
        if self.steps is None:
            return BEST_STEPS if self.preset == "best" else 0
        return self.steps


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
class InspectArguments:
    """Arguments of ``inspect``."""

    path: Path = required("An artifact.", positional=True)
    verify: bool = argument(False, "Check every hash, then the stored probe outputs.")
    device: str = argument("auto", "Torch device; auto takes CUDA where there is one.")


VERBS: Mapping[str, type] = {
    "plan": PlanArguments,
    "compress": CompressArguments,
    "calibrate": CalibrateArguments,
    "evaluate": EvaluateArguments,
    "sample": SampleArguments,
    "export": ExportArguments,
    "inspect": InspectArguments,
}
"""Verb -> the dataclass of its arguments."""


def names_of(cls: type) -> tuple[str, ...]:
    """The names of the fields of an arguments class."""
    return tuple(f.name for f in fields(cls))


def check_required(cls: type, given: Iterable[str]) -> None:
    """Refuse a call that lacks an argument without a default.

    Raises:
        UsageError: one is missing.
    """
    from dataclasses import MISSING

    have = frozenset(given)
    for f in fields(cls):
        if f.default is MISSING and f.name not in have:
            raise UsageError(f"{f.name} is needed: {f.metadata['help']}")
