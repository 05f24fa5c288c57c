"""Ctrl-C between two steps and never within one, so that the state that is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from dpq_core.calibrate.train import Context


class Stop:
    """Notes a first Ctrl-C while the block runs; a second one interrupts at once."""

    def __init__(self, context: Context) -> None:
        """Nothing asked for yet."""
        self._workers, self._device = context.workers, context.device
        self._asked = False
        self._before: Any = None
        self._main = threading.current_thread() is threading.main_thread()

    def wanted(self) -> bool:
        """Whether to stop now; all processes of a run get the same answer."""
        if self._workers.world == 1:
            return self._asked
        return bool(self._workers.sum(torch.tensor(float(self._asked), device=self._device)))

    def __enter__(self) -> Self:
        """Take over SIGINT, in the main thread."""
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give SIGINT back."""
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            signal.default_int_handler(number, frame)
        self._asked = True
