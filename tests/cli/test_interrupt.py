"""Ctrl-C is Ctrl-C, whatever a library makes of it."""

from __future__ import annotations

import signal

import pytest

from dpq_cli.interrupt import interruptible


def swallow():
    """What native code does that calls Python while the signal arrives."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None


def test_an_interrupt_that_a_library_replaced_is_one_again():
    advice = lambda: "use --resume"  # noqa: E731
    with pytest.raises(KeyboardInterrupt, match="use --resume"), interruptible(advice):
        swallow()


def test_the_inner_advice_wins():
    with (
        pytest.raises(KeyboardInterrupt, match="inner"),
        interruptible(),
        interruptible(lambda: "inner"),
    ):
        signal.raise_signal(signal.SIGINT)


def test_other_errors_pass_and_the_handler_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="other"), interruptible(lambda: "advice"):
        raise ValueError("other")
    assert signal.getsignal(signal.SIGINT) is before
