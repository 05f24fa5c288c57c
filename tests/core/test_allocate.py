"""allocate(): within the budget, near the optimum, as good as brute force where that is known."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpq_core.allocate import Choice, allocate
from dpq_core.errors import SpecError

choices = st.lists(
    st.builds(Choice, st.integers(1, 50), st.floats(0, 100, allow_nan=False)),
    min_size=1,
    max_size=4,
)


def totals(items, picked):
    found = [item[i] for item, i in zip(items, picked, strict=True)]
    return sum(c.nbytes for c in found), sum(c.cost for c in found)


@given(st.lists(choices, min_size=1, max_size=5), st.integers(1, 250))
def test_within_the_budget_and_no_single_swap_helps(items, budget):
    if sum(min(c.nbytes for c in item) for item in items) > budget:
        with pytest.raises(SpecError, match="too small"):
            allocate(items, budget)
        return
    picked = allocate(items, budget)
    nbytes, _ = totals(items, picked)
    assert nbytes <= budget
    for item, i in zip(items, picked, strict=True):
        for other in item:
            fits = nbytes - item[i].nbytes + other.nbytes <= budget
            assert not (fits and other.cost < item[i].cost)


@given(st.lists(choices, min_size=1, max_size=5), st.integers(1, 250))
def test_on_the_hull_of_budgets_it_is_optimal(items, budget):
    """What relaxation finds for some slope, no other choice of as many bytes beats."""
    if sum(min(c.nbytes for c in item) for item in items) > budget:
        return
    spent, cost = totals(items, allocate(items, budget))
    every = [totals(items, p) for p in itertools.product(*(range(len(item)) for item in items))]
    best = min(c for n, c in every if n <= budget)
    slack = max(max(c.cost for c in item) - min(c.cost for c in item) for item in items)
    assert best <= cost <= best + slack + 1e-9  # off by less than one item's choice
    assert spent <= budget


def test_a_tight_budget_gives_every_item_its_smallest_choice():
    items = [[Choice(4, 1.0), Choice(2, 3.0)], [Choice(1, 9.0), Choice(8, 0.0)]]
    assert allocate(items, 3) == [1, 0]
    assert allocate(items, 12) == [0, 1]


def test_bytes_go_where_they_save_most():
    items = [[Choice(10, 5.0), Choice(20, 1.0)], [Choice(10, 50.0), Choice(20, 10.0)]]
    assert allocate(items, 30) == [0, 1]
