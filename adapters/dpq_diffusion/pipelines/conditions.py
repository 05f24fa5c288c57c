"""The conditions of images to draw: a class, a prompt, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpq_core.errors import SpecError
from dpq_core.nearest import nearest

_SHOWN_CLASSES = 8


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The condition of an image: a class, a prompt, or none.

    Attributes:
        name: name in captions; empty for an unconditional model.
        label: class number.
        prompt: text.
    """

    name: str = ""
    label: int | None = None
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to draw: its number, its condition and the seed of its own generator."""

    index: int
    seed: int
    condition: Condition


def make_items(conditions: Sequence[Condition], count: int, seed: int) -> list[Item]:
    """The first ``count`` images to draw: conditions in turn, image i with ``seed + i``."""
    return [
        Item(index=i, seed=seed + i, condition=conditions[i % len(conditions)])
        for i in range(count)
    ]


def class_names(pipeline: Any) -> dict[int, str]:
    """The class names of a pipeline by class number; empty where it knows none."""
    stored = pipeline.config.get("id2label") or pipeline.__dict__.get("id2label")
    if isinstance(stored, Mapping):
        return {int(key): str(value) for key, value in stored.items()}
    names: dict[int, str] = {}
    for name, number in (getattr(pipeline, "labels", None) or {}).items():  # DiTPipeline: synonyms
        names[number] = f"{names[number]}, {name}" if number in names else name
    return names


def class_conditions(
    words: Sequence[str], classes: int, names: Mapping[int, str], *, few: bool
) -> tuple[Condition, ...]:
    """The conditions of the classes asked for, or of all classes.

    Args:
        words: class numbers or names.
        classes: number of classes of the model.
        names: names of the classes by number; empty where unknown.
        few: without ``words``, spread a few classes over all where there are many.

    Raises:
        SpecError: a class out of range, or an unknown name.
    """
    if words:
        labels = [_label(word, classes, names) for word in words]
    elif few and classes > _SHOWN_CLASSES + 2:
        labels = [i * classes // _SHOWN_CLASSES for i in range(_SHOWN_CLASSES)]
    else:
        labels = list(range(classes))
    return tuple(Condition(name=names.get(n, f"class {n}"), label=n) for n in labels)


def _label(word: str, classes: int, names: Mapping[int, str]) -> int:
    if word.lstrip("-").isdecimal():
        label = int(word)
        if not 0 <= label < classes:
            message = f"the model has the classes 0 to {classes - 1}"
            raise SpecError(message, option="label", value=label)
        return label
    numbers: dict[str, int] = {}
    for number, name in names.items():
        for synonym in (name, *name.split(",")):
            numbers.setdefault(synonym.strip().lower(), number)
    if word.strip().lower() in numbers:
        return numbers[word.strip().lower()]
    if not numbers:
        message = f"the model has no class names; give 0 to {classes - 1}"
        raise SpecError(message, option="label", value=word)
    shown = ", ".join(list(names.values())[:12]) + (", ..." if len(names) > 12 else "")
    message = f"unknown class; {nearest(word.lower(), numbers, most=1)}classes: {shown}"
    raise SpecError(message, option="label", value=word)
