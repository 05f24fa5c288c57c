"""The calibration loop: EM over the quantized weights of a student, with data.

E-step: codes move towards the teacher's weights in the metric of the layer inputs
(docs/algorithms.md#e-step). M-step: AdamW on codebooks, pools, scales and small parameters
(docs/algorithms.md#m-step). The best state by validation loss is kept, the initial state included:
calibrating never makes a student worse.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dpq_core.calibrate.candidates import Choosing
from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.estep import WeightsEStep
from dpq_core.calibrate.layers import (
    changing,
    quantized_layers,
    restore,
    round_student,
    snapshot,
    targets,
)
from dpq_core.calibrate.phases import Phase, phases, validation
from dpq_core.calibrate.report import CalibrateReport, note, recovered
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.calibrate.state import LoopState, StateFolder, Tensors
from dpq_core.calibrate.steps import MStep, adamw_options, rates, recomputing
from dpq_core.calibrate.train import Context, DeferredInterrupt, Training
from dpq_core.data.task import CalibrationTask
from dpq_core.device import resolve
from dpq_core.errors import ANY, AdapterError, Hint, Interrupted, SpecError
from dpq_core.run import Run
from dpq_core.tensor.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The folder of an unfinished run's state, and the run's identity.

    Attributes:
        folder: folder of the state.
        resume: continue from a state there, if there is one; the result is the same.
        identity: identity of artifact, data and options; settings and student are added to it.
    """

    folder: Path
    resume: bool = False
    identity: str = ""


def calibrate(
    task: CalibrationTask,
    settings: CalibrateSettings,
    *,
    checkpoint: Checkpoint | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    saving: Saving | None = None,
    run: Run | None = None,
) -> CalibrateReport:
    """Train a student in place; it ends in the best state, rounded to the values that are stored.

    Args:
        task: student, batches and losses. Quantized weights whose parameters require gradients
            are put into their trainable form.
        settings: settings of the loop.
        checkpoint: the original weights, by the names of ``task.tensor_name``; without it codes
            are chosen by the task's own E-steps only.
        dtypes: name in the student -> stored dtype of a dense parameter, where it is known.
        saving: where an unfinished run is kept; None keeps nothing.
        run: device and progress.

    Raises:
        SpecError: loss or gradient are not finite; the student is in the best state so far.
        AdapterError: blocks are asked for, but the task has none; or candidates without a
            checkpoint.
        ArtifactError: the state cannot be read or written, or is another run's.
        SourceError: the checkpoint is not the original of the student.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    calibration = _Calibration(task, settings, checkpoint, run or Run())
    with DeferredInterrupt(calibration.context) as stop:
        return calibration.run(saving, stop, dtypes or {})


class _Calibration:
    """One call of ``calibrate``."""

    def __init__(
        self,
        task: CalibrationTask,
        settings: CalibrateSettings,
        checkpoint: Checkpoint | None,
        run: Run,
    ) -> None:
        self._started = time.perf_counter()
        self._task, self._settings, self._progress = task, settings, run.progress
        task.begin(settings.steps)
        self._layers = quantized_layers(task)
        if not any(p.requires_grad for p in task.student.parameters()):
            raise SpecError("calibrate: the student has no parameter that can be trained")
        self._original = snapshot(task.student)
        # Now, while the student is as it came: a resumed run must have the same.
        trained = {n: p for n, p in task.student.named_parameters() if p.requires_grad}
        self._rates = rates(trained, self._layers, task.groups())
        self._adamw = adamw_options(trained, task.groups())
        self._target = None if checkpoint is None else targets(checkpoint)
        if self._target is None and settings.candidates:
            raise AdapterError(
                "calibrate: candidates are the codewords nearest to the original weights, and "
                f"{type(task).__name__} comes without these",
                Hint.of("leave out {}", candidates=ANY),
            )
        device, workers = resolve(run.device), Workers()
        self.context = Context(
            student=task.student, settings=settings, workers=workers, device=device
        )
        self._phases = phases(task, self._layers, settings, workers)
        self._total = sum(phase.steps for phase in self._phases)

    def run(
        self, saving: Saving | None, stop: DeferredInterrupt, dtypes: Mapping[str, torch.dtype]
    ) -> CalibrateReport:
        """Train all phases, then round the student and report."""
        student = self._task.student
        folder = None if saving is None else StateFolder(saving.folder, self._identity(saving))
        resumed = folder.load(self.context.device) if saving and folder and saving.resume else None
        if resumed is not None:
            state, saved = resumed
            restore(student, saved.pop("student"))
        else:
            state, saved = self._begin(), {}
        try:
            with recomputing(self._layers, self._settings.recompute):
                while state.phase < len(self._phases):
                    self._train(state, saved, _Watch(self, state, folder, stop))
                    saved = {}
        finally:
            restore(student, state.overall)
            student.eval()
        return self._finish(state, dtypes)

    def _identity(self, saving: Saving) -> str:
        """Hash of everything that decides the result."""
        shapes = {n: list(t.shape) for n, t in changing(self._task.student).items()}
        task = [saving.identity, self._task.name, self._task.fingerprint]
        text = json.dumps([task, self._settings.to_json(), shapes, self.context.workers.world])
        return hashlib.sha256(text.encode()).hexdigest()

    def _begin(self) -> LoopState:
        """Measure the uncompressed model, and the student as it came."""
        self._progress("measuring the uncompressed model", 0, self._total)
        reference = self._task.reference_loss()
        before = self._validate()
        if not math.isfinite(before):
            raise SpecError(
                "calibrate: the loss is not finite before anything is trained; look for damaged "
                "values in the artifact or the data"
            )
        overall = snapshot(self._task.student)
        return LoopState(before=before, reference=reference, overall=overall, overall_loss=before)

    def _train(self, state: LoopState, saved: dict[str, Tensors], watch: _Watch) -> None:
        """Train one phase; a result that does not lower the task's loss is taken back.

        Codes chosen among candidates are kept until the end of the run: often the task's loss falls
        only once the blocks behind have adapted.
        """
        phase = self._phases[state.phase]
        watch.training = training = self._training(phase)
        training.load(saved)
        try:
            training.run(state, watch)
        except SpecError:
            self._keep(state)
            raise
        chosen = self._settings.candidates > 0 and state.phase < len(self._phases) - 1
        self._keep(state, always=chosen)
        state.next_phase()

    def _training(self, phase: Phase) -> Training | Choosing:
        """The training of a phase, before its first step."""
        student, goal = self._task.student, phase.begin()
        if phase.candidates:
            assert self._target is not None  # __init__ has seen it
            return Choosing(self.context, phase, goal, self._target)
        parts = goal.parameters, self._rates, self._settings, self.context.workers
        mstep = MStep(*parts, adamw=self._adamw)
        layers = goal.layers if self._target is not None else ()
        interval = self._settings.interval(phase.steps)
        weights = WeightsEStep(student, layers, self._target, self._settings, interval=interval)
        return Training(self.context, phase, goal, mstep, weights)

    def _keep(self, state: LoopState, *, always: bool = False) -> None:
        """Compare the student with the best state so far; go on with the better one.

        Args:
            state: holds the best one.
            always: go on with the student in any case.
        """
        loss = self._validate()
        if loss < state.overall_loss:
            state.overall, state.overall_loss = snapshot(self._task.student), loss
        elif not always:
            restore(self._task.student, state.overall)

    def _validate(self) -> float:
        batches = validation(self._task, self.context.workers)
        return self.context.mean(self._task.loss, batches)

    def show(self, state: LoopState, loss: float) -> None:
        """Progress after an M-step."""
        phase = self._phases[state.phase]
        # A block's own best loss is no loss of the task.
        last = state.phase == len(self._phases) - 1 and self._settings.mode != "block"
        best = min(state.best_loss, state.overall_loss) if last else state.overall_loss
        share = recovered(state.before, best, state.reference)
        text = note(phase.title, loss, share, state.esteps)
        self._progress(text, state.done, self._total)

    def _finish(self, state: LoopState, dtypes: Mapping[str, torch.dtype]) -> CalibrateReport:
        """Round the student to the stored values; where that is worse than before, restore it."""
        student = self._task.student
        round_student(student, dtypes)
        after = self._validate()
        if not after <= state.before:
            restore(student, self._original)
            after = state.before
        self._progress("done", self._total, self._total)
        return CalibrateReport(
            loss=self._task.name,
            before=state.before,
            after=after,
            baseline=state.reference,
            steps=state.done,
            validations=tuple(state.validations),
            esteps=tuple(state.esteps),
            seconds=time.perf_counter() - self._started,
        )


@dataclass
class _Watch:
    """Called between two M-steps: reports progress, saves the state and stops the run."""

    calibration: _Calibration
    state: LoopState
    folder: StateFolder | None
    stop: DeferredInterrupt
    training: Training | Choosing = field(init=False)

    def __call__(self, loss: float) -> None:
        self.calibration.show(self.state, loss)
        context, every = self.calibration.context, self.calibration.context.settings.save_every
        stopped = self.stop.requested()
        if self.folder is not None and (stopped or (every and self.state.step % every == 0)):
            if context.workers.rank == 0:
                student = {"student": changing(context.student)}
                state = self.training.resumable(self.state)
                self.folder.save(state, {**student, **self.training.tensors()})
            context.workers.wait()
        if stopped:
            if self.folder is None:
                raise KeyboardInterrupt("nothing is kept")
            raise Interrupted(
                f"{self.folder.path} is kept", Hint.of("use {} to continue", resume=True)
            )
