"""Results that the steps of a job share: made once per key, one of each kind at a time."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest

from dpq_core.run import Reuse, Run


class Result:
    pass


def test_an_equal_key_gives_the_same_result_and_another_makes_it_anew():
    reuse = Reuse()
    first = reuse.get("kind", ("a", 1), Result)
    assert reuse.get("kind", ("a", 1), Result) is first
    second = reuse.get("kind", ("a", 2), Result)
    assert second is not first
    assert reuse.get("kind", ("a", 1), Result) is not first


@pytest.mark.slow
def test_a_result_is_dropped_before_the_next_is_made():
    reuse, alive = Reuse(), []
    old = weakref.ref(reuse.get("kind", "a", Result))

    def make():
        gc.collect()
        alive.append(old() is not None)
        return Result()

    reuse.get("kind", "b", make)
    assert alive == [False]


def test_failures_are_not_remembered():
    reuse = Reuse()
    with pytest.raises(ZeroDivisionError):
        reuse.get("kind", "a", lambda: 1 / 0)
    assert reuse.get("kind", "a", lambda: 3) == 3


def test_kinds_are_kept_apart_and_every_job_begins_with_nothing():
    run = Run()
    first = run.reuse.get("one", "a", Result)
    assert run.reuse.get("other", "a", Result) is not first
    assert run.reuse.get("one", "a", Result) is first
    assert dataclasses.replace(run, seed=1).reuse is run.reuse
    assert Run().reuse is not run.reuse
    assert Run() == run
