"""Allocation of a budget: one choice per item, with the least total cost.

Minimises ``sum cost`` subject to ``sum bytes <= budget`` over one choice per item: Lagrangian
relaxation finds the slope at which the budget is all but spent (Shoham and Gersho 1988), and
greedy steps spend what is left. Knows nothing of tensors or scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpq_core.errors import SpecError

BISECTIONS = 100
"""Halvings of the range of slopes; by then neighbouring slopes are equal in double precision."""


@dataclass(frozen=True)
class Choice:
    """One way to store an item: its size in bytes, and its cost in quality."""

    nbytes: int
    cost: float


def allocate(items: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The index of the chosen choice of every item.

    Args:
        items: the choices of each item, at least one.
        budget: largest number of bytes of all choices together.

    Raises:
        SpecError: even the smallest choices do not fit.
    """
    least = sum(min(choice.nbytes for choice in choices) for choices in items)
    if least > budget:
        raise SpecError(
            f"the budget of {budget:,} bytes is too small: the smallest choices take {least:,}"
        )
    hulls = [_hull(choices) for choices in items]
    chosen = [0] * len(items)  # places on the hulls; the first is the smallest choice
    low, high = 0.0, _steepest(items, hulls)
    for _ in range(BISECTIONS):
        slope = (low + high) / 2
        tried = [_best(choices, hull, slope) for choices, hull in zip(items, hulls, strict=True)]
        if _nbytes(items, hulls, tried) <= budget:
            high, chosen = slope, tried
        else:
            low = slope
    picked = [hull[place] for hull, place in zip(hulls, chosen, strict=True)]
    return _spend(items, picked, budget)


def _hull(choices: Sequence[Choice]) -> list[int]:
    """Indices of the choices on the lower convex hull of cost over bytes, by bytes."""
    order = sorted(range(len(choices)), key=lambda i: (choices[i].nbytes, choices[i].cost, i))
    hull: list[int] = []
    for index in order:
        if hull and choices[index].cost >= choices[hull[-1]].cost:
            continue
        while len(hull) > 1 and _gain(choices, hull[-2], hull[-1]) <= _gain(
            choices, hull[-2], index
        ):
            hull.pop()
        hull.append(index)
    return hull


def _gain(choices: Sequence[Choice], small: int, large: int) -> float:
    """Cost saved per byte from one choice to a larger one."""
    more = choices[large].nbytes - choices[small].nbytes
    return (choices[small].cost - choices[large].cost) / more if more else float("inf")


def _steepest(items: Sequence[Sequence[Choice]], hulls: Sequence[Sequence[int]]) -> float:
    """A slope at which every item takes its smallest choice."""
    gains = [
        _gain(choices, hull[0], hull[1])
        for choices, hull in zip(items, hulls, strict=True)
        if len(hull) > 1
    ]
    return 2 * max(gains, default=1.0) + 1e-300


def _best(choices: Sequence[Choice], hull: Sequence[int], slope: float) -> int:
    """The place on the hull that minimises cost + slope * bytes."""
    scores = [choices[index].cost + slope * choices[index].nbytes for index in hull]
    return min(range(len(hull)), key=scores.__getitem__)


def _nbytes(
    items: Sequence[Sequence[Choice]], hulls: Sequence[Sequence[int]], places: Sequence[int]
) -> int:
    return sum(
        choices[hull[place]].nbytes
        for choices, hull, place in zip(items, hulls, places, strict=True)
    )


def _spend(items: Sequence[Sequence[Choice]], picked: list[int], budget: int) -> list[int]:
    """Make the swap that saves the most cost per byte until none fits."""
    left = budget - sum(choices[i].nbytes for choices, i in zip(items, picked, strict=True))
    while True:
        best: tuple[float, int, int] | None = None
        for item, choices in enumerate(items):
            now = choices[picked[item]]
            for index, choice in enumerate(choices):
                more, saved = choice.nbytes - now.nbytes, now.cost - choice.cost
                if saved <= 0 or more > left:
                    continue
                gain = saved / max(more, 1)
                if best is None or gain > best[0]:
                    best = (gain, item, index)
        if best is None:
            return picked
        _, item, index = best
        left -= items[item][index].nbytes - items[item][picked[item]].nbytes
        picked[item] = index
