"""The phases of calibration: training of single blocks, and of the whole student end to end.

In block-wise training (docs/algorithms.md#block-training) a block gets its inputs from the already
calibrated part before it and learns the outputs that the teacher's block gives on the teacher's
inputs, so that it makes up for the errors of the blocks before it. Only the activations of one
block are kept.
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
    """The parameters that one phase trains, with their batches and loss.

    Attributes:
        batch: step -> this process's samples.
        loss: mean loss of samples.
        validation: fixed batches of equal size.
        layers: layers whose codes may change.
        parameters: name in the student -> trained parameter.
        esteps: the task's own E-steps.
    """

    batch: Callable[[int], Share]
    loss: Callable[[Batch], Tensor]
    validation: Sequence[Share]
    layers: Sequence[QuantizedLayer]
    parameters: Mapping[str, nn.Parameter]
    esteps: Sequence[EStep] = ()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a calibration.

    Attributes:
        title: name of the phase in progress and reports.
        steps: number of M-steps.
        begin: makes the goal, once everything before it is trained.
        candidates: whether the phase only chooses codes among candidates
            (``calibrate.candidates``).
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
    # Codes of a trellis stay: one code is part of several windows.
    layers = [layer for layer in layers if not layer.weight.partition.row_bits]
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
    """Training of the whole student on the task's loss."""

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
    """Training of one block on its teacher's outputs; the loss is relative to their power."""

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
        """The inputs of the student's block and the outputs of the teacher's, for one batch."""
        batch, share = self.workers.slice(whole)
        task, student, teacher = self.task, self.task.student.eval(), self.task.teacher()
        assert teacher is not None  # phases() has seen it
        with torch.no_grad():
            args, kwargs = self._watch(
                arguments_of,
                student.get_submodule(self.path),
                lambda: task.forward(student, batch),
            )
            target = self._watch(
                _output_of,
                teacher.get_submodule(self.path),
                lambda: task.forward(teacher, batch),
            )
        return {"args": args, "kwargs": kwargs, "target": target}, share

    def _watch(
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
    """The tensors that a block gives to the next one at its first call in ``forward``.

    Raises:
        Unstorable: the block is not called.
    """
    outputs: list[list[Tensor]] = []
    handle = block.register_forward_hook(lambda _, __, output: outputs.append(_tensors(output)))
    try:
        with until(after=block):
            forward()
    finally:
        handle.remove()
    if not outputs:
        raise Unstorable("a batch does not reach the block")
    return outputs[0]


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of a block's output, which may be one or several streams."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        return []
    return [tensor for value in values for tensor in _tensors(value)]
