"""Progress with the time left, for work that takes more than two seconds."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from dpq_cli.render import console
from dpq_core.sizes import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_SECONDS = 2.0
"""Shorter work shows no progress at all."""

LOG_SECONDS = 10.0
"""Time between two progress lines when stderr is not a terminal."""


STEPS = 64
"""Latest progress calls from which the time left is extrapolated."""


class Meter:
    """A ``dpq_core.run.Progress`` that draws a bar on a terminal and lines in a log.

    The time left is extrapolated from the latest steps only, so that tensors taken over by
    ``--resume`` do not make it too hopeful. When the total changes or the work done goes back,
    another phase has begun.
    """

    def __init__(self) -> None:
        self._console = console()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = self._logged = time.monotonic()
        self._steps: deque[tuple[float, float]] = deque(maxlen=STEPS)  # (time, work done)
        self._total = -1.0
        self._hidden = False

    def __enter__(self) -> Meter:
        """Start the clock."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def hide(self) -> None:
        """Remove the bar for good, because something else is written to the terminal."""
        self._hidden = True
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: float, total: float) -> None:
        """Show that ``done`` of ``total`` is done and ``what`` is being worked on."""
        now = time.monotonic()
        if total != self._total or (self._steps and done < self._steps[-1][1]):
            self._steps.clear()
        self._total = total
        self._steps.append((now, done))
        if self._hidden or now - self._began < QUIET_SECONDS:
            return
        left = self._time_left()
        if self._console.is_terminal:
            self._draw(what, done, total, left)
        elif done < total and now - self._logged >= LOG_SECONDS:
            self._logged = now
            share = 100 * done / total
            self._console.print(f"{share:3.0f}%  {left}  {what}", markup=False, soft_wrap=True)

    def _time_left(self) -> str:
        (start, first), (now, done) = self._steps[0], self._steps[-1]
        if done <= first or now - start < 0.5:
            return "estimating"
        return f"{format_seconds((now - start) * (self._total - done) / (done - first))} left"

    def _draw(self, what: str, done: float, total: float, left: str) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        if self._bar is None or self._task is None:
            self._bar = Progress(
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                Elapsed(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total, left=left)
            self._bar.start()
        self._bar.update(self._task, description=what, completed=done, total=total, left=left)
