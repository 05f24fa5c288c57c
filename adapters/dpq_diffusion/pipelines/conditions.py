"""What an image is asked to show: a class, a prompt, or nothing in particular."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpq_core.errors import SpecError

_SHOWN_CLASSES = 8


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One thing to draw.

    Attributes:
        name: as captions show it; empty for an unconditional model.
        label: class number.
        prompt: text.
    """

    name: str = ""
    label: int | None = None
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to draw: the condition and the seed of its own generator."""

    index: int
    seed: int
    condition: Condition


def make_items(conditions: Sequence[Condition], count: int, seed: int) -> list[Item]:
    """``count`` images, the conditions in turn; image i has the seed ``seed + i``."""
    return [
        Item(index=i, seed=seed + i, condition=conditions[i % len(conditions)])
        for i in range(count)
    ]


def class_names(pipeline: Any) -> dict[int, str]:
    """Class number -> name, where the pipeline knows names."""
    stored = pipeline.config.get("id2label") or pipeline.__dict__.get("id2label")
    if isinstance(stored, Mapping):
        return {int(key): str(value) for key, value in stored.items()}
    names: dict[int, str] = {}
    for name, number in (getattr(pipeline, "labels", None) or {}).items():  # DiTPipeline: synonyms
        names[number] = f"{names[number]}, {name}" if number in names else name
    return names


def class_conditions(
    wanted: Sequence[str], classes: int, names: Mapping[int, str], *, few: bool
) -> tuple[Condition, ...]:
    """The classes asked for, or all of them.

    Args:
        wanted: numbers or names.
        classes: number of classes of the model.
        names: of the classes, where known.
        few: without ``wanted``, spread a few classes over all where there are many.

    Raises:
        SpecError: a class out of range, or an unknown name.
    """
    if wanted:
        labels = [_label(word, classes, names) for word in wanted]
    elif few and classes > _SHOWN_CLASSES + 2:
        labels = [i * classes // _SHOWN_CLASSES for i in range(_SHOWN_CLASSES)]
    else:
        labels = list(range(classes))
    return tuple(Condition(name=names.get(n, f"class {n}"), label=n) for n in labels)


def _label(word: str, classes: int, names: Mapping[int, str]) -> int:
    if word.lstrip("-").isdecimal():
        label = int(word)
        if not 0 <= label < classes:
            raise SpecError(f"--label {label}: the model has the classes 0 to {classes - 1}")
        return label
    known: dict[str, int] = {}
    for number, name in names.items():
        for synonym in (name, *name.split(",")):
            known.setdefault(synonym.strip().lower(), number)
    if word.strip().lower() in known:
        return known[word.strip().lower()]
    if not known:
        raise SpecError(f"--label {word!r}: the model has no class names; give 0 to {classes - 1}")
    near = difflib.get_close_matches(word.lower(), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(list(names.values())[:12]) + (", ..." if len(names) > 12 else "")
    raise SpecError(f"--label {word!r}: unknown class; {hint}classes: {shown}")
