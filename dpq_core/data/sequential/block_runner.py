"""Runs a part of a model over all calibration batches: a block alone, or the model's prefix."""

from __future__ import annotations

import functools

from torch import nn

from dpq_core.data.sequential.activations import Activations, Unstorable
from dpq_core.data.sequential.capture import arguments_of, next_arguments, until
from dpq_core.data.sequential.segments import Segment, Source
from dpq_core.data.task import CalibrationTask


class BlockRunner:
    """Holds the inputs of at most one block, on all batches.

    Attributes:
        held: path of the block whose inputs are stored.
    """

    def __init__(self, task: CalibrationTask, batches: int, activations: Activations) -> None:
        """Nothing stored yet.

        Args:
            task: whose student is run.
            batches: how many of ``train_batch``.
            activations: where inputs are stored.
        """
        self.held: str | None = None
        self._refused: set[str] = set()  # blocks whose inputs turned out to be no plain tensors
        self._task, self._model = task, task.student
        self._batches, self._activations = range(batches), activations

    def run(self, segment: Segment, stop: str | None = None) -> None:
        """One pass over all batches.

        Args:
            segment: what has to run.
            stop: path of a layer at whose call the pass may end.
        """
        if segment.source is not Source.PREFIX and segment.block is not None:
            self._hold(segment.block)
        block = self._module(segment.block)
        before = self._module(stop or segment.until)
        for step in self._batches:
            with until(before=before, after=block):
                if block is not None and self.held == segment.block:
                    args, kwargs = self._activations.get(step)
                    block(*args, **kwargs)
                else:
                    self._task.forward(self._model, self._task.train_batch(step))

    def advance(self, segment: Segment, following: Segment | None) -> None:
        """Turn the stored inputs of a block into those of the next one, or forget them.

        Args:
            segment: a block, quantized.
            following: the next block, if anything is left to do.
        """
        block = self._module(segment.block)
        wiring = None if following is None else following.wiring
        if block is None or self.held != segment.block or following is None or wiring is None:
            self.clear()
            return
        for step in self._batches:
            arguments = self._activations.get(step)
            output = block(*arguments[0], **arguments[1])
            try:
                self._activations.put(step, next_arguments(arguments, output, wiring))
            except Unstorable:  # this batch is wired otherwise: capture the inputs instead
                self.clear()
                return
        self.held = following.block

    def clear(self) -> None:
        """Forget all inputs."""
        self._activations.clear()
        self.held = None

    def _hold(self, path: str) -> None:
        """Run the model up to a block, and store the block's inputs."""
        if self.held == path or path in self._refused:
            return
        self.clear()
        block = self._model.get_submodule(path)
        for step in self._batches:
            batch = self._task.train_batch(step)
            forward = functools.partial(self._task.forward, self._model, batch)
            try:
                self._activations.put(step, arguments_of(block, forward))
            except Unstorable:
                self._refused.add(path)
                self.clear()
                return
        self.held = path

    def _module(self, path: str | None) -> nn.Module | None:
        return None if path is None else self._model.get_submodule(path)
