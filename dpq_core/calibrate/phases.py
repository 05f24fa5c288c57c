"""What a phase of calibration minimises: the task's own loss, or a block's distance to its teacher.

Block-wise training (docs/algorithms.md#block-training): a block gets its inputs from the already
calibrated part before
it, and learns to give the outputs that the teacher's block gives on the teacher's own inputs, so
that it makes up for what the blocks before it got wrong. Only one block's activations are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.layers import QuantizedLayer
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.data.sequential.activations import Unstorable
from dpq_core.data.sequential.capture import arguments_of, until
from dpq_core.data.task import Batch, CalibrationTask, EStep
from dpq_core.errors import ANY, AdapterError, Hint

Share = tuple[Batch, float]
"""This process's samples of a batch, and their share of all."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What one phase trains, and on what.

    Attributes:
        batch: step -> this process's samples.
        loss: of samples, a mean.
        validation: fixed batches of equal size.
        layers: whose codes may change.
        parameters: name in the student -> trained parameter.
        esteps: the task's own.
    """

    batch: Callable[[int], Share]
    loss: Callable[[Batch], Tensor]
    validation: Sequence[Share]
    layers: Sequence[QuantizedLayer]
    parameters: Mapping[str, nn.Parameter]
    esteps: Sequence[EStep] = ()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training.

    Attributes:
        title: for people.
        steps: M-steps.
        begin: makes the goal, once everything before it is trained.
        candidates: codes are chosen among candidates (``calibrate.candidates``), nothing else.
    """

    title: str
    steps: int
    begin: Callable[[], Goal]
    candidates: bool = False


def phases(
    task: CalibrationTask,
    layers: Sequence[QuantizedLayer],
    settings: CalibrateSettings,
    workers: Workers,
) -> list[Phase]:
    """The phases of a run, in order.

    Raises:
        AdapterError: blocks are asked for, but the task has none or no teacher.
    """
    paths, mode = list(task.blocks()), settings.mode
    asks = mode != "end" or settings.candidates > 0
    blockwise = asks and bool(paths) and task.teacher() is not None
    if mode == "auto":
        mode = "both" if blockwise else "end"
    result = []
    if mode in ("block", "both") or settings.candidates:
        if not blockwise:
            hint = Hint.of("use {}", mode="end")
            if settings.candidates:
                hint = Hint.of("use {} without {}", mode="end", candidates=ANY)
            raise AdapterError(
                f"calibrate: {type(task).__name__} has no blocks with a teacher", hint
            )
        steps = settings.block_steps_in(mode)
        for index, path in enumerate(paths):
            block = _Block(task, path, layers, settings, workers)
            title = f"block {index + 1} of {len(paths)}"
            if settings.candidates and block.inside():
                chosen = f"candidates of {title}"
                result.append(Phase(title=chosen, steps=steps, begin=block.goal, candidates=True))
            if mode != "end":
                result.append(Phase(title=title, steps=steps, begin=block.goal))
    if mode in ("end", "both"):
        begin = _EndToEnd(task, layers, workers).goal
        result.append(Phase(title="end to end", steps=settings.steps, begin=begin))
    return result


@dataclass(frozen=True)
class _EndToEnd:
    """The task's own loss."""

    task: CalibrationTask
    layers: Sequence[QuantizedLayer]
    workers: Workers

    def goal(self) -> Goal:
        return Goal(
            batch=lambda step: self.workers.slice(self.task.train_batch(step)),
            loss=self.task.loss,
            validation=validation(self.task, self.workers),
            layers=self.layers,
            parameters=_trained(self.task.student, ""),
            esteps=self.task.esteps(),
        )


def validation(task: CalibrationTask, workers: Workers) -> list[Share]:
    """This process's part of the task's validation batches."""
    return [workers.slice(batch) for batch in task.validation()]


def _trained(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    dot = f"{prefix}." if prefix else ""
    return {f"{dot}{name}": p for name, p in module.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class _Block:
    """The mean squared distance of a block's output to the teacher's, over the teacher's power."""

    task: CalibrationTask
    path: str
    layers: Sequence[QuantizedLayer]
    settings: CalibrateSettings
    workers: Workers

    def goal(self) -> Goal:
        count = self.settings.block_batches
        train = [self._capture(self.task.train_batch(i)) for i in range(count)]
        block = self.task.student.get_submodule(self.path)
        return Goal(
            batch=lambda step: train[step % count],
            loss=self._loss,
            validation=[self._capture(batch) for batch in self.task.validation()],
            layers=self.inside(),
            parameters=_trained(block, self.path),
        )

    def inside(self) -> list[QuantizedLayer]:
        """The quantized weights of the block."""
        modules = set(self.task.student.get_submodule(self.path).modules())
        return [layer for layer in self.layers if layer.weight in modules]

    def _capture(self, whole: Batch) -> Share:
        """Inputs of the student's block and the output of the teacher's, of this process's part."""
        batch, share = self.workers.slice(whole)
        task, student, teacher = self.task, self.task.student.eval(), self.task.teacher()
        assert teacher is not None  # phases() has seen it
        with torch.no_grad():
            args, kwargs = self._reached(
                arguments_of,
                student.get_submodule(self.path),
                lambda: task.forward(student, batch),
            )
            target = self._reached(
                _output_of,
                teacher.get_submodule(self.path),
                lambda: task.forward(teacher, batch),
            )
        return {"args": args, "kwargs": kwargs, "target": target}, share

    def _reached(
        self,
        look: Callable[[nn.Module, Callable[[], Any]], Any],
        block: nn.Module,
        forward: Callable[[], Any],
    ) -> Any:
        try:
            return look(block, forward)
        except Unstorable:
            raise AdapterError(
                f"calibrate: a batch's forward pass does not reach the block {self.path!r}"
            ) from None

    def _loss(self, batch: Batch) -> Tensor:
        block = self.task.student.get_submodule(self.path)
        outputs = _tensors(block(*batch["args"], **batch["kwargs"]))
        losses = [
            nn.functional.mse_loss(output.float(), target.float())
            / target.float().square().mean().clamp(min=1e-12)
            for output, target in zip(outputs, batch["target"], strict=True)
        ]
        return torch.stack(losses).mean()


def _output_of(block: nn.Module, forward: Callable[[], Any]) -> list[Tensor]:
    """The tensors that a block gives to the next one when ``forward`` calls it first.

    Raises:
        Unstorable: it does not.
    """
    found: list[list[Tensor]] = []
    handle = block.register_forward_hook(lambda _, __, output: found.append(_tensors(output)))
    try:
        with until(after=block):
            forward()
    finally:
        handle.remove()
    if not found:
        raise Unstorable("a batch does not reach the block")
    return found[0]


def _tensors(output: Any) -> list[Tensor]:
    """The real tensors of what a block gives to the next one: its output, or several streams."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        return []
    return [tensor for value in values for tensor in _tensors(value)]
