"""BlockRunner: runs one block, or the model up to it, over all calibration batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dpq_core.data.sequential.activations import Activations, Unstorable, flatten
from dpq_core.data.sequential.capture import arguments_of, next_arguments, same_values, until
from dpq_core.data.sequential.paused_runs import PausedRuns
from dpq_core.data.sequential.segments import Segment, Source
from dpq_core.data.statistics.hooks import Diverged
from dpq_core.data.task import CalibrationTask
from dpq_core.device import quick_products
from dpq_core.errors import AdapterError


class BlockRunner:
    """Runs parts of a model over all batches, and stores the inputs of one block at a time.

    Attributes:
        stored_block: path of the block whose inputs are stored; None where none are.
        outputs_stored: whether the outputs of the last block are stored instead.
    """

    def __init__(
        self, task: CalibrationTask, batches: int, activations: Activations, *, quick: bool = True
    ) -> None:
        """Start with nothing stored.

        Args:
            task: its student is run.
            batches: number of training batches to run.
            activations: where inputs are stored.
            quick: round products to bfloat16, where the processor does that quicker.
        """
        self.stored_block: str | None = None
        self.outputs_stored = False
        self._refused: set[str] = set()  # blocks whose inputs cannot be stored
        self._task, self._model = task, task.student
        self._batches, self._activations = range(batches), activations
        self._quick = quick
        self._paused: PausedRuns | None = None

    def pause(
        self,
        segment: Segment,
        groups: Sequence[Sequence[str]],
        repeating: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> PausedRuns | None:
        """Runs of a block that wait at its layers; None where the block cannot be run alone.

        What they end with serves ``advance`` and ``finish``.

        Args:
            segment: the block.
            groups: paths of the layers of each group, as ``PausedRuns`` takes their modules.
            repeating: as for ``PausedRuns``.
        """
        block = self._module(segment.block)
        if segment.source is Source.PREFIX or block is None or segment.block is None:
            return None
        self.store_inputs(segment.block)
        if self.stored_block != segment.block:
            return None
        self._paused = PausedRuns(
            block,
            [[self._model.get_submodule(path) for path in paths] for paths in groups],
            self._activations.get,
            self._batches,
            budget=self._activations.room,
            quick=self._quick,
            repeating=repeating,
        )
        return self._paused

    def end_pause(self) -> None:
        """End the runs that wait, if there are any; the inputs of their block stay."""
        if self._paused is not None:
            self._paused.close()
        self._paused = None

    def run(self, segment: Segment, stop: str | None = None) -> None:
        """Run a segment over all batches once.

        Args:
            segment: the part of the model to run.
            stop: path of a layer; the pass may end once it has been called with its input.
        """
        if segment.source is not Source.PREFIX and segment.block is not None:
            self.store_inputs(segment.block)
        block = self._module(segment.block)
        entering, before = self._module(stop), self._module(segment.until)
        for step in self._batches:
            with quick_products(self._quick), until(entering, before, block):
                if self.outputs_stored:
                    with _returning(self._blocks(), self._activations.get(step)):
                        self._task.forward(self._model, self._task.train_batch(step))
                elif block is not None and self.stored_block == segment.block:
                    _run_block(block, self._activations.get(step))
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
        for step, output in self._outputs(block):
            arguments = self._activations.get(step)
            try:
                self._activations.put(step, next_arguments(arguments, output, wiring))
            except Unstorable:  # this batch flows differently: capture the inputs instead
                self.clear()
                return
        self.end_pause()
        self.stored_block = following.block

    def finish(self, segment: Segment, following: str) -> None:
        """Turn the stored inputs of the last block into its outputs, for the layers that follow.

        Args:
            segment: the last block, quantized.
            following: path of the last layer that follows the blocks.
        """
        block = self._module(segment.block)
        if block is None or self.stored_block != segment.block:
            self.clear()
            return
        for step, output in self._outputs(block):
            try:
                self._activations.put(step, output)
            except Unstorable:
                self.clear()
                return
        self.end_pause()
        if self._suffices(self._model.get_submodule(following)):
            self.stored_block, self.outputs_stored = None, True
        else:
            self.clear()

    def clear(self) -> None:
        """Delete all stored inputs and outputs, and end what waits."""
        self.end_pause()
        self._activations.clear()
        self.stored_block, self.outputs_stored = None, False

    def save(self, folder: Path) -> dict[str, Any] | None:
        """Write the stored inputs or outputs to a folder.

        Returns:
            What ``restore`` needs beside the folder, as JSON; None where nothing is stored.

        Raises:
            Unstorable: files cannot hold them.
            ArtifactError: the disk refused.
        """
        if self.stored_block is None and not self.outputs_stored:
            return None
        batches = self._activations.save(folder)
        return {"block": self.stored_block, "outputs": self.outputs_stored, "batches": batches}

    def restore(self, folder: Path, content: dict[str, Any]) -> None:
        """Read back what ``save`` has written.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, SafetensorError, OSError: the content
                is damaged.
        """
        self.clear()
        self._activations.restore(folder, content["batches"])
        self.stored_block, self.outputs_stored = content["block"], content["outputs"]

    def _outputs(self, block: nn.Module) -> Iterator[tuple[int, Any]]:
        """Every batch and the output of a block whose inputs are stored."""
        if self._paused is not None:
            try:
                yield from self._paused.outputs()
            except Diverged:
                raise AdapterError(
                    f"{self.stored_block}: layers that share an input on the first batch do not "
                    "share it on others, which quantizing with data cannot follow"
                ) from None
            return
        for step in self._batches:
            with quick_products(self._quick):
                output = _run_block(block, self._activations.get(step))
            yield step, output

    def store_inputs(self, path: str) -> None:
        """Run the model up to a block and store the block's inputs, if that has not been done."""
        if self.stored_block == path or path in self._refused:
            return
        self.clear()
        block = self._model.get_submodule(path)
        for step in self._batches:
            batch = self._task.train_batch(step)
            forward = functools.partial(self._task.forward, self._model, batch)
            try:
                with quick_products(self._quick):
                    self._activations.put(step, arguments_of(block, forward))
            except Unstorable:
                self._refused.add(path)
                self.clear()
                return
        self.stored_block = path

    def _suffices(self, layer: nn.Module) -> bool:
        """Whether what follows the blocks needs the outputs of the last one alone.

        Args:
            layer: one that follows; its input on one batch decides.
        """
        forward = functools.partial(self._task.forward, self._model, self._task.train_batch(0))
        whole, inputs = list[Tensor](), list[Tensor]()
        try:
            with quick_products(self._quick):
                flatten(arguments_of(layer, forward), whole)
                with _returning(self._blocks(), self._activations.get(0)):
                    flatten(arguments_of(layer, forward), inputs)
        except Unstorable:
            return False
        return len(whole) == len(inputs) and all(map(same_values, whole, inputs))

    def _blocks(self) -> Sequence[nn.Module]:
        return [self._model.get_submodule(path) for path in self._task.blocks()]

    def _module(self, path: str | None) -> nn.Module | None:
        return None if path is None else self._model.get_submodule(path)


def _run_block(block: nn.Module, arguments: Any) -> Any:
    """The output of a block for its stored arguments, (args, kwargs)."""
    args, kwargs = arguments
    return block(*args, **kwargs)


@contextmanager
def _returning(modules: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Let modules return one output without computing anything."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        return output

    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = answer
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
