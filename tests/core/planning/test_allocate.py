"""allocate(): within the budget, near the optimum, as good as brute force where that is known."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpq_core.errors import SpecError
from dpq_core.planning.allocate import Choice, allocate

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


# Whole numbers: two slopes that differ do so by more than rounding.
whole = st.lists(
    st.builds(Choice, st.integers(1, 50), st.integers(0, 100).map(float)), min_size=1, max_size=6
)


@pytest.mark.slow
@given(st.lists(whole, min_size=1, max_size=7), st.integers(-20, 20))
def test_at_the_bytes_of_a_slope_nothing_is_better_than_that_slope(items, power):
    """Everett's theorem: what minimises cost + slope * bytes costs least among as few bytes."""
    slope = 1.37**power
    best = [min(item, key=lambda c: c.cost + slope * c.nbytes) for item in items]
    budget, cost = sum(c.nbytes for c in best), sum(c.cost for c in best)
    spent, found = totals(items, allocate(items, budget))
    assert spent <= budget
    assert found == pytest.approx(cost)


def test_what_is_left_goes_to_the_swap_that_saves_most_per_byte():
    """The large steps do not fit, and the small ones lie above the hull: only the rest buys one."""
    small = {"better": Choice(15, 95.0), "worse": Choice(14, 97.0), "far": Choice(16, 94.5)}
    large = Choice(110, 0.0)
    for order in itertools.permutations(small):
        items = [[Choice(10, 100.0), small[name], large] for name in order]
        found = allocate(items, 30 + 5)  # 5 bytes: 1 per byte, against 0.75; 6 do not fit
        assert found == [int(name == "better") for name in order]
        found = allocate(items, 30 + 5 + 4)
        assert found == [int(name != "far") for name in order]


def test_several_steps_are_taken_while_bytes_are_left():
    item = [Choice(10, 100.0), Choice(12, 99.5), Choice(15, 98.0), Choice(110, 0.0)]
    assert allocate([item, item], 30) == [2, 2]
    assert allocate([item, item], 27) in ([2, 1], [1, 2])


def test_the_same_bytes_are_spent_on_the_cheaper_choice():
    assert allocate([[Choice(5, 3.0), Choice(5, 1.0), Choice(5, 2.0)]], 5) == [1]
    assert allocate([[Choice(5, 1.0), Choice(9, 1.0)]], 99) == [0]  # bytes for nothing


def test_nothing_to_choose_from_takes_nothing():
    assert allocate([], 0) == []
    assert allocate([[Choice(3, 1.0)]], 3) == [0]


def test_a_tight_budget_gives_every_item_its_smallest_choice():
    items = [[Choice(4, 1.0), Choice(2, 3.0)], [Choice(1, 9.0), Choice(8, 0.0)]]
    assert allocate(items, 3) == [1, 0]
    assert allocate(items, 12) == [0, 1]


def test_bytes_go_where_they_save_most():
    items = [[Choice(10, 5.0), Choice(20, 1.0)], [Choice(10, 50.0), Choice(20, 10.0)]]
    assert allocate(items, 30) == [0, 1]
