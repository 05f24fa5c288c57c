"""Sizes, times and the progress meter."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dpq_cli import meter as meter_module
from dpq_cli.meter import Meter
from dpq_core.errors import SpecError
from dpq_core.jobs.evaluate import format_value
from dpq_core.sizes import format_seconds, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("500 MB", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("4096", 4096),
        ("1kb", 1000),
    ],
)
def test_parse_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 parsecs", "0", "1e9"])
def test_parse_size_refuses(text):
    with pytest.raises(SpecError, match="write for example 500MB or 4GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345_678, "12.3 MB"), (5e12, "5 TB")],
)
def test_format_size(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (52.4, "52 s"), (187, "3:07"), (7800, "2:10:00")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_format_value():
    assert format_value(12.345678) == "12.346"


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    text = io.StringIO()
    log = Console(file=text, width=100)
    monkeypatch.setattr(meter_module, "console", lambda: log)
    return text


def test_short_work_shows_nothing(clock, screen):
    with Meter() as meter:
        for done in range(10):
            clock.now += 0.1
            meter("work", done, 10)
    assert screen.getvalue() == ""


def test_a_log_gets_a_line_with_the_time_left(clock, screen):
    with Meter() as meter:
        for done in range(100):
            meter("tensor", done, 100)
            clock.now += 1
    lines = screen.getvalue().splitlines()
    assert lines[0] == " 10%  1:30 left  tensor"
    assert len(lines) == 9


def test_resumed_work_does_not_make_the_estimate_hopeful(clock, screen):
    with Meter() as meter:
        for done in range(1000):  # taken over at once
            meter("old", done, 1100)
        for done in range(1000, 1081):
            clock.now += 1
            meter("new", done, 1100)
    assert screen.getvalue().splitlines()[-1].split("  ")[1] in ("20 s left", "21 s left")


def test_another_phase_starts_another_estimate(clock, screen):
    with Meter() as meter:
        meter("first", 0, 10)
        clock.now += 100
        meter("first", 10, 10)
        meter("second", 0, 50)
        clock.now += 10
        meter("second", 10, 50)
    assert screen.getvalue().splitlines()[-1] == " 20%  40 s left  second"


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    text = io.StringIO()
    terminal = Console(file=text, width=100, force_terminal=True)
    monkeypatch.setattr(meter_module, "console", lambda: terminal)
    with Meter() as meter:
        meter("tensor [x]", 0, 10)
        clock.now += 5
        meter("tensor [x]", 5, 10)
    assert "50%" in text.getvalue()
    assert "5.0 s left" in text.getvalue()
    assert "tensor [x]" in text.getvalue()
