"""Marks in configs: undone exactly, one per adapter, and never stacked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpq_hf.guard import Guard

ONE, OTHER = Guard("dpq_one"), Guard("dpq_other")


@given(st.text())
def test_the_mark_is_undone(name):
    assert ONE.unmarked(ONE.marked(name)) == ONE.unmarked(name)
    assert ONE.marked(ONE.marked(name)) == ONE.marked(name)
    assert OTHER.unmarked(ONE.marked(name)) == ONE.marked(name)


def test_the_mark_says_what_to_do():
    assert ONE.marked("silu") == "silu (dpq artifact: import dpq_one first)"


@pytest.mark.parametrize("guards", [(ONE, OTHER), (OTHER, ONE), (ONE, OTHER, ONE)])
def test_a_table_takes_the_marks_of_several_adapters(guards):
    table = {"silu": 1, "gelu": 2}
    for guard in guards:
        guard.enter(table)
    expected = {g.marked(name): v for g in guards for name, v in (("silu", 1), ("gelu", 2))}
    assert table == {"silu": 1, "gelu": 2} | expected
