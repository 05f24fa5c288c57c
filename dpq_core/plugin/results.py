"""The results of an adapter's methods, and its demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number, with its direction and protocol.

    Attributes:
        name: name, e.g. ``perplexity``.
        value: the number.
        higher_is_better: direction of improvement.
        protocol: how and on what it was measured, e.g. ``context 512, 98,304 tokens of a.txt``.
    """

    name: str
    value: float
    higher_is_better: bool
    protocol: str


@dataclass(frozen=True, kw_only=True)
class RatedText:
    """A text with a number at each of its pieces, which reports show as colour.

    Attributes:
        name: what the numbers are, with their unit.
        pieces: tokens or words with their numbers, 0 where nothing is wrong; together the text.
    """

    name: str
    pieces: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of one model.

    Attributes:
        metrics: metrics in the order in which they are shown.
        details: further values for the report's JSON.
        notes: lines for the user on what was left out, and why.
        others: evaluations of further sources by name, as more columns of the table.
        baseline: evaluation of the baseline, where the adapter measured both in one pass.
        text: the beginning of the text that was read, where its tokens have numbers.
    """

    metrics: tuple[Metric, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    others: Mapping[str, Evaluation] = field(default_factory=dict)
    baseline: Evaluation | None = None
    text: RatedText | None = None

    def to_json(self) -> dict[str, Any]:
        """The evaluation with those of others and of the baseline, as plain JSON values."""
        values = dataclasses.asdict(dataclasses.replace(self, others={}, baseline=None))
        values["others"] = {name: other.to_json() for name, other in self.others.items()}
        values["baseline"] = None if self.baseline is None else self.baseline.to_json()
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """The inverse of ``to_json``."""
        baseline, text = values["baseline"], values["text"]
        if text is not None:
            pieces = tuple((str(piece), float(value)) for piece, value in text["pieces"])
            text = RatedText(name=text["name"], pieces=pieces)
        return cls(
            metrics=tuple(Metric(**metric) for metric in values["metrics"]),
            details=values["details"],
            notes=tuple(values["notes"]),
            others={name: cls.from_json(other) for name, other in values["others"].items()},
            baseline=None if baseline is None else cls.from_json(baseline),
            text=text,
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The samples of a model: texts, and files that were written.

    Attributes:
        texts: texts of the model.
        files: files that were written.
        baseline_texts: the baseline's text to each of ``texts``, where there is a baseline.
    """

    texts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    baseline_texts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Export:
    """The files of an export, with notes on losses and conventions."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo of an adapter: a built-in model, and options that keep it short.

    In the values of the options, ``SAMPLES`` stands for the folder of the model's samples, and
    ``ORIGINAL`` for that of the uncompressed model's.

    Attributes:
        source: the uncompressed model.
        evaluate: options for all models.
        sample: options for all models.
        evaluate_against: further options for compressed models.
        sample_against: further options for compressed models.
        presets: presets of compression, for adapters that have them instead of bits per weight.
        shown: names of the metrics in the table; empty for all of them.
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
