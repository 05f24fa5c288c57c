"""Ctrl-C, also where a library turns it into an error of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible(advice: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Whatever is raised after a Ctrl-C in this block becomes a KeyboardInterrupt.

    Native code that is calling Python when the signal arrives may replace the KeyboardInterrupt:
    safetensors, for one, then reports a ValueError about a storage.

    Args:
        advice: gives what to do now, unless the interrupt says so already.
    """
    seen = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        signal.default_int_handler(number, frame)

    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if ours else None
    try:
        yield
    except KeyboardInterrupt as stop:
        if stop.args:
            raise
        raise KeyboardInterrupt(advice()) from None
    except Exception:
        if not seen:
            raise
        raise KeyboardInterrupt(advice()) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
