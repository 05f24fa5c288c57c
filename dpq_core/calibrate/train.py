"""The training of one phase: M-steps, with E-steps and validations between them."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.estep import WeightsEStep, total
from dpq_core.calibrate.layers import changing, restore, snapshot
from dpq_core.calibrate.phases import Goal, Phase, Share
from dpq_core.calibrate.report import Assigned, Validated
from dpq_core.calibrate.settings import GRADIENT, CalibrateSettings
from dpq_core.calibrate.state import LoopState, Tensors
from dpq_core.calibrate.steps import MStep
from dpq_core.data.task import Batch, EStepStats

Watch = Callable[[float], None]
"""Called between two M-steps with the loss of the last one; reports, saves, stops."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all phases of a run share: student, settings, processes and device."""

    student: nn.Module
    settings: CalibrateSettings
    workers: Workers
    device: torch.device

    def mean(self, loss: Callable[[Batch], Tensor], batches: Sequence[Share]) -> float:
        """The mean loss over batches and processes, without gradients, in eval mode."""
        total_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.student.eval()
        with torch.no_grad(), self.precision():
            for batch, share in batches:
                total_loss += loss(batch).double() * share
        return float(self.workers.sum(total_loss)) / len(batches)

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """A context of mixed precision, where the settings ask for it on a GPU."""
        if self.device.type == "cuda" and self.settings.mixed:
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def seeded(self, step: int) -> Iterator[None]:
        """A context in which dropout draws the same in a resumed run."""
        index = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(index):
            torch.manual_seed(self.settings.seed + step)
            yield


REACHES = (4.0, 2.0, 1.0)
"""Distances along the loss gradient, in Newton steps for all weights; tried in this order."""


class Training:
    """The training of one phase: a goal, its optimizer and its E-steps."""

    def __init__(
        self, context: Context, phase: Phase, goal: Goal, mstep: MStep, weights: WeightsEStep
    ) -> None:
        """Keep what the phase works on.

        Args:
            context: what all phases of the run share.
            phase: title and number of steps.
            goal: the goal that ``phase.begin`` made.
            mstep: optimizer of the goal's parameters.
            weights: E-steps of the goal's layers.
        """
        self._context, self._phase, self._goal = context, phase, goal
        self._mstep, self._weights = mstep, weights

    def run(self, state: LoopState, watch: Watch) -> None:
        """Train from ``state.step`` to the end; leaves the student in the phase's best state.

        Raises:
            SpecError: loss or gradient are not finite; the student is in the phase's best state.
        """
        settings, steps = self._context.settings, self._phase.steps
        if not state.best:
            state.best, state.best_loss = snapshot(self._context.student), self._validate(state)
        every = settings.validation_interval(steps)
        try:
            while state.step < steps and not self._out_of_patience(state):
                if settings.estep_due(state.step, steps):
                    self._assign(state)
                loss = self._update(state.step)
                state.step, state.done = state.step + 1, state.done + 1
                if state.step % every == 0 or state.step == steps:
                    self._compare(state)
                watch(loss)
        finally:
            restore(self._context.student, state.best)

    def tensors(self) -> dict[str, Tensors]:
        """The tensors that a resumed run needs: the state of the optimizer and of the E-steps."""
        return {"adam": self._mstep.tensors(), "estep": self._weights.tensors()}

    def load(self, saved: dict[str, Tensors]) -> None:
        """The inverse of ``tensors``."""
        self._mstep.load(saved.get("adam", {}))
        self._weights.load(saved.get("estep", {}))

    def resumable(self, state: LoopState) -> LoopState:
        """The state from which an interrupted run resumes: this one."""
        return state

    def _out_of_patience(self, state: LoopState) -> bool:
        patience = self._context.settings.patience
        return bool(patience) and state.waited >= patience

    def _update(self, step: int) -> float:
        context = self._context
        batch, share = self._goal.batch(step)

        def loss(samples: Batch) -> Tensor:
            with context.precision():
                return self._goal.loss(samples)

        context.student.train()
        with context.seeded(step):
            factor = context.settings.lr_at(step, self._phase.steps)
            return self._mstep.step(loss, batch, share, factor)

    def _validate(self, state: LoopState) -> float:
        loss = self._context.mean(self._goal.loss, self._goal.validation)
        state.validations.append(Validated(phase=self._phase.title, step=state.step, loss=loss))
        return loss

    def _compare(self, state: LoopState) -> None:
        """Validate, and keep the state if it is the best of the phase."""
        loss = self._validate(state)
        state.waited += 1
        if loss < state.best_loss:
            state.best, state.best_loss = snapshot(self._context.student), loss
            state.waited = 0

    def _assign(self, state: LoopState) -> None:
        """Make an E-step; before the first M-step also solve for the codebooks in closed form."""
        settings, progress = self._context.settings, state.step / self._phase.steps
        solves = settings.warm_start and state.step == 0
        if settings.estep == "none" and not solves:
            return
        if not self._weights.layers and not self._goal.esteps:
            return  # nothing has codes
        count = settings.statistics_batches
        batches = [self._goal.batch(state.step + i) for i in range(count)]
        before = self._weights.collect(
            lambda: self._context.mean(self._goal.loss, batches), self._context.workers
        )
        has_steps = False
        for limit, reach in self._attempts(state):
            if reach and not has_steps:
                self._weights.look(self._goal.loss, batches, self._context.workers)
                has_steps = True
            self._weights.aim(reach)
            change = functools.partial(self._codes, limit, progress)
            before = self._try(state, "codes", batches, before, change, gradient=reach > 0)
            if state.esteps[-1].kept:
                break
            self._weights.undo()
        self._weights.aim(0)
        if solves:
            self._try(state, "codebooks", batches, before, self._weights.solve)

    def _attempts(self, state: LoopState) -> list[tuple[float, float]]:
        """The attempts of an E-step, until one lowers the loss: (limit, reach along the gradient).

        Before anything is trained, and often for a while after, the original weights are the better
        targets; then the gradient is, always with a limit.
        """
        settings, title = self._context.settings, self._phase.title
        limit = settings.limit_at(state.step / self._phase.steps)
        if settings.estep == "none":
            return []
        if state.step == 0 or settings.estep not in GRADIENT or not self._weights.layers:
            return [(part, 0.0) for part in dict.fromkeys((limit, settings.limit))]
        failed = any(
            e.what == "codes" and e.phase == title and e.step and not (e.gradient or e.kept)
            for e in state.esteps
        )
        original = [] if failed or settings.estep == "pv" else [(limit, 0.0)]
        return [*original, *((settings.limit, reach) for reach in REACHES)]

    def _codes(self, limit: float, progress: float) -> EStepStats:
        return total([e.step(limit, progress) for e in (self._weights, *self._goal.esteps)])

    def _try(
        self,
        state: LoopState,
        what: str,
        batches: Sequence[Share],
        before: float,
        change: Callable[[], EStepStats],
        *,
        gradient: bool = False,
    ) -> float:
        """Change the student, and undo the change if it raises the loss; returns the loss."""
        student = self._context.student
        saved = snapshot(student)
        stats = change()
        self._context.workers.agree(changing(student).values())
        after = self._context.mean(self._goal.loss, batches)
        kept = math.isfinite(after) and after <= before
        if kept:
            for name, rows in self._weights.revived.items():
                self._mstep.forget(name, rows)
            self._weights.revived = {}
        else:
            restore(student, saved)
        record = Assigned(
            phase=self._phase.title,
            step=state.step,
            what=what,
            gradient=gradient,
            before=before,
            after=after,
            kept=kept,
            **asdict(stats),
        )
        state.esteps.append(record)
        return after if kept else before


class DeferredInterrupt:
    """Defers a first Ctrl-C to the end of a step; a second one interrupts at once."""

    def __init__(self, context: Context) -> None:
        """Start with no interrupt requested."""
        self._workers, self._device = context.workers, context.device
        self._requested = False
        self._previous: Any = None
        self._main = threading.current_thread() is threading.main_thread()

    def requested(self) -> bool:
        """Whether to stop now; all processes of a run get the same answer."""
        if self._workers.world == 1:
            return self._requested
        return bool(self._workers.sum(torch.tensor(float(self._requested), device=self._device)))

    def __enter__(self) -> Self:
        """Take over SIGINT, in the main thread."""
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give SIGINT back."""
        if self._main:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            signal.default_int_handler(number, frame)
        self._requested = True
