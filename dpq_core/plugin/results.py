"""What the methods of an adapter return, and what it says of its demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number, with everything needed to compare it.

    Attributes:
        name: e.g. ``perplexity``.
        value: the number.
        higher_is_better: direction of improvement.
        protocol: what was measured on what, e.g. ``context 512, 98,304 tokens of heldout.txt``.
    """

    name: str
    value: float
    higher_is_better: bool
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of one model.

    Attributes:
        metrics: in the order in which they are shown.
        details: whatever else belongs in ``--json``.
        notes: one line each, for the user: what was left out, and why.
        others: further sources that the adapter measured alike, by name: more columns of the table.
    """

    metrics: tuple[Metric, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    others: Mapping[str, Evaluation] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a model made: texts to read, files to open."""

    texts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, and what a person should know about it (losses, conventions)."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What ``dpq demo`` shows of an adapter: a built-in model, and options that keep it short.

    In the values of the options, ``SAMPLES`` stands for the folder of the model's samples, and
    ``ORIGINAL`` for that of the uncompressed model's.

    Attributes:
        source: the uncompressed model.
        evaluate: options for all models.
        sample: options for all models.
        evaluate_against: further options for compressed models.
        sample_against: further options for compressed models.
        presets: of ``dpq compress``, for adapters that have them instead of bits per weight.
        shown: metrics of the table; all of them if none is named.
    """

    SAMPLES: ClassVar[str] = "{samples}"
    ORIGINAL: ClassVar[str] = "{original}"

    source: str
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    evaluate_against: Mapping[str, Any] = field(default_factory=dict)
    sample_against: Mapping[str, Any] = field(default_factory=dict)
    presets: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
