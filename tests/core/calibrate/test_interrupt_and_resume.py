"""Ctrl-C in a calibration: noted at first, immediate the second time, the same in all processes."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from dpq_core.calibrate.train import DeferredInterrupt


class Others:
    """This process among others, of which some have been asked to stop."""

    def __init__(self, world: int, asked: int = 0) -> None:
        self.world, self.asked, self.sums = world, asked, 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self.sums += 1
        return value + self.asked


def stop_among(world: int = 1, asked: int = 0) -> tuple[DeferredInterrupt, Others]:
    workers = Others(world, asked)
    return DeferredInterrupt(SimpleNamespace(workers=workers, device=torch.device("cpu"))), workers


def test_the_first_interrupt_is_noted_and_the_second_is_immediate():
    stop, workers = stop_among()
    with stop:
        assert stop.requested() is False
        signal.raise_signal(signal.SIGINT)
        assert stop.requested() is True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert workers.sums == 0  # a process on its own asks nobody


def test_the_handler_is_given_back():
    before = signal.getsignal(signal.SIGINT)
    with stop_among()[0]:
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ZeroDivisionError), stop_among()[0]:
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("mine", "others"), [(False, 0), (True, 0), (False, 1), (True, 3)])
def test_one_process_that_is_asked_stops_them_all(mine, others):
    stop, workers = stop_among(4, others)
    with stop:
        if mine:
            signal.raise_signal(signal.SIGINT)
        assert stop.requested() is (mine or others > 0)
    assert workers.sums == 1  # a collective: every process takes part in it, asked or not


def test_another_thread_leaves_the_handler_alone():
    """Only the main thread may set one; a calibration in another cannot be stopped gently."""
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stop_among()[0] as stop:
            found.append((signal.getsignal(signal.SIGINT), stop.requested()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]
    assert signal.getsignal(signal.SIGINT) is before
