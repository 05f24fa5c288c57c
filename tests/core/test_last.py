"""Last: made once per key, one result at a time."""

from __future__ import annotations

import gc
import weakref

import pytest

from dpq_core.data.last import Last


class Result:
    pass


def test_an_equal_key_gives_the_same_result_and_another_makes_it_anew():
    last = Last()
    first = last.get(("a", 1), Result)
    assert last.get(("a", 1), Result) is first
    second = last.get(("a", 2), Result)
    assert second is not first
    assert last.get(("a", 1), Result) is not first


def test_a_result_is_dropped_before_the_next_is_made():
    last, alive = Last(), []
    old = weakref.ref(last.get("a", Result))

    def make():
        gc.collect()
        alive.append(old() is not None)
        return Result()

    last.get("b", make)
    assert alive == [False]


def test_failures_are_not_remembered():
    last = Last()
    with pytest.raises(ZeroDivisionError):
        last.get("a", lambda: 1 / 0)
    assert last.get("a", lambda: 3) == 3
