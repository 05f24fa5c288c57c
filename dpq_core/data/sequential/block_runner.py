"""BlockRunner: runs one block, or the model up to it, over all calibration batches."""

from __future__ import annotations

import functools

from torch import nn

from dpq_core.data.sequential.activations import Activations, Unstorable
from dpq_core.data.sequential.capture import arguments_of, next_arguments, until
from dpq_core.data.sequential.segments import Segment, Source
from dpq_core.data.task import CalibrationTask


class BlockRunner:
    """Runs parts of a model over all batches, and stores the inputs of one block at a time.

    Attributes:
        stored_block: path of the block whose inputs are stored; None where none are.
    """

    def __init__(self, task: CalibrationTask, batches: int, activations: Activations) -> None:
        """Start with nothing stored.

        Args:
            task: its student is run.
            batches: number of training batches to run.
            activations: where inputs are stored.
        """
        self.stored_block: str | None = None
        self._refused: set[str] = set()  # blocks whose inputs cannot be stored
        self._task, self._model = task, task.student
        self._batches, self._activations = range(batches), activations

    def run(self, segment: Segment, stop: str | None = None) -> None:
        """Run a segment over all batches once.

        Args:
            segment: the part of the model to run.
            stop: path of a layer; the pass may end where it is called.
        """
        if segment.source is not Source.PREFIX and segment.block is not None:
            self._store_inputs(segment.block)
        block = self._module(segment.block)
        before = self._module(stop or segment.until)
        for step in self._batches:
            with until(before=before, after=block):
                if block is not None and self.stored_block == segment.block:
                    args, kwargs = self._activations.get(step)
                    block(*args, **kwargs)
                else:
                    self._task.forward(self._model, self._task.train_batch(step))

    def advance(self, segment: Segment, following: Segment | None) -> None:
        """Turn the stored inputs of a block into those of the next one, or forget them.

        Args:
            segment: a block that is quantized.
            following: the next block; None where nothing is left to do.
        """
        block = self._module(segment.block)
        wiring = None if following is None else following.wiring
        stored = block is not None and self.stored_block == segment.block
        if block is None or not stored or following is None or wiring is None:
            self.clear()
            return
        for step in self._batches:
            arguments = self._activations.get(step)
            output = block(*arguments[0], **arguments[1])
            try:
                self._activations.put(step, next_arguments(arguments, output, wiring))
            except Unstorable:  # this batch flows differently: capture the inputs instead
                self.clear()
                return
        self.stored_block = following.block

    def clear(self) -> None:
        """Delete all stored inputs."""
        self._activations.clear()
        self.stored_block = None

    def _store_inputs(self, path: str) -> None:
        """Run the model up to a block, and store the block's inputs."""
        if self.stored_block == path or path in self._refused:
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
        self.stored_block = path

    def _module(self, path: str | None) -> nn.Module | None:
        return None if path is None else self._model.get_submodule(path)
