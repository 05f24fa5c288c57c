"""Marks in configs: undone exactly, one per adapter, and never stacked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpq_hf.activation_mark import ActivationMark

ONE, OTHER = ActivationMark("dpq_one"), ActivationMark("dpq_other")


@given(st.text())
def test_the_mark_is_undone(name):
    assert ONE.remove(ONE.add(name)) == ONE.remove(name)
    assert ONE.add(ONE.add(name)) == ONE.add(name)
    assert OTHER.remove(ONE.add(name)) == ONE.add(name)


def test_the_mark_says_what_to_do():
    assert ONE.add("silu") == "silu (dpq artifact: import dpq_one first)"


@pytest.mark.parametrize("marks", [(ONE, OTHER), (OTHER, ONE), (ONE, OTHER, ONE)])
def test_a_table_takes_the_marks_of_several_adapters(marks):
    table = {"silu": 1, "gelu": 2}
    for mark in marks:
        mark.register_in(table)
    expected = {mark.add(name): v for mark in marks for name, v in (("silu", 1), ("gelu", 2))}
    assert table == {"silu": 1, "gelu": 2} | expected
