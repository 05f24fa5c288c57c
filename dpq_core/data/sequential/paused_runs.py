"""PausedRuns: runs of one block over all batches that wait at layers while these are quantized.

Each batch goes through the block once. Its run is suspended (a greenlet) where it meets the first
layer of a group, and goes on from there with the quantized weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpq_core.data.sequential.capture import StopForward
from dpq_core.data.statistics.hooks import Diverged, TensorSerials
from dpq_core.device import quick_products


@dataclass(eq=False)
class _Run:
    """The run of one batch.

    Attributes:
        group: number of the group of layers that it met last; -1 at the start.
        wanted: number of the group at which it ends, where it does not wait.
        waits: the suspended run; None for one that ends early and has to be repeated.
        input: input of the group that it met last.
        output: output of the block, once ``over``.
        over: whether it has reached the end of the block.
        outputs: outputs of the block's modules, as far as they are alive.
        serials: numbers of the inputs of layers.
        serial_of_group: number of a group -> that of its first layer's input.
    """

    group: int = -1
    wanted: int = 0
    waits: greenlet | None = None
    input: Any = None
    output: Any = None
    over: bool = False
    outputs: list[weakref.ref[Tensor]] = field(default_factory=list)
    serials: TensorSerials = field(default_factory=TensorSerials)
    serial_of_group: dict[int, int] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Bytes of the tensors that this run keeps alive, as far as modules made them."""
        tensors = [*(reference() for reference in self.outputs), self.input]
        storages = [x.untyped_storage() for x in tensors if isinstance(x, Tensor)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class PausedRuns:
    """Runs of one block over all batches that wait at layers while these are quantized.

    Runs that would together keep more than the budget are given up, and repeated from the block's
    beginning for every group. Use it under ``torch.no_grad``, and close it in the end.
    """

    def __init__(
        self,
        block: nn.Module,
        groups: Sequence[Sequence[nn.Module]],
        arguments: Callable[[int], Any],
        batches: Sequence[int],
        *,
        budget: int,
        quick: bool = False,
        repeating: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Hook the layers; nothing runs yet.

        Args:
            block: the block.
            groups: groups of its layers that get the same input once in each run, in the order in
                which their first layers are called.
            arguments: number of a batch -> the block's (args, kwargs).
            batches: numbers of the batches.
            budget: bytes that the suspended runs may keep alive.
            quick: round products to bfloat16, where the processor does that quicker.
            repeating: a context in which runs that were given up are repeated.
        """
        self._repeating = repeating
        self._block, self._arguments, self._groups = block, arguments, len(groups)
        self._budget, self._quick = budget, quick
        self._runs = {step: _Run() for step in batches}
        self._kept = dict.fromkeys(batches, 0)  # bytes that each run keeps alive
        self._current: _Run | None = None
        self._handles: list[RemovableHandle] = []
        for number, layers in enumerate(groups):
            for place, layer in enumerate(layers):
                self._handles.append(self._hook(layer, number, first=place == 0))
        self._handles += [
            module.register_forward_hook(self._made)
            for module in block.modules()
            if module is not block
        ]

    def inputs(self, group: int) -> Iterator[tuple[int, Any]]:
        """Each batch that reaches a group of layers, and their input; groups in their order.

        Raises:
            Diverged: the layers of a group got different inputs, or were not called in the order
                of the groups, or repeatedly.
        """
        for step, run in self._runs.items():
            if run.waits is None and run.group >= 0 and not run.over:
                self._runs[step] = run = _Run(wanted=group)
                self._repeat(step, run)
            while run.group < group and not run.over:
                self._go_on(step, run)
            if run.group == group and not run.over:
                yield step, run.input
                self._give_up_beyond_budget(step, run)

    def go_ahead(self, group: int) -> None:
        """Let the runs that wait go on to a group of layers, or to the end after the last one.

        Raises:
            Diverged: as in ``inputs``.
        """
        for step, run in self._runs.items():
            while (run.waits is not None or run.group < 0) and run.group < group and not run.over:
                self._go_on(step, run)
            if not run.over:
                self._give_up_beyond_budget(step, run)

    def outputs(self) -> Iterator[tuple[int, Any]]:
        """The number of each batch, and the output of the block for it.

        Raises:
            Diverged: as in ``inputs``.
        """
        for step, run in self._runs.items():
            if run.waits is None and run.group >= 0 and not run.over:
                run = _Run(wanted=self._groups)
                self._repeat(step, run)
            while not run.over:
                self._go_on(step, run)
            self._runs[step] = _Run(over=True)
            yield step, run.output

    def close(self) -> None:
        """End all runs, and remove all hooks."""
        for run in self._runs.values():
            self._end(run)
        self._runs.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _go_on(self, step: int, run: _Run) -> None:
        """Let a run go on to the next group, or to its end."""
        if run.waits is None:
            args, kwargs = self._arguments(step)
            run.waits = greenlet(lambda: self._block(*args, **kwargs))
        with self._running(run):
            result = run.waits.switch()
        if run.waits.dead:
            run.waits, run.input, run.output, run.over = None, None, result, True
            self._kept[step] = 0

    def _repeat(self, step: int, run: _Run) -> None:
        """Run a batch from the block's beginning to the group that is wanted, or to its end."""
        args, kwargs = self._arguments(step)
        try:
            with self._running(run), self._repeating():
                run.output = self._block(*args, **kwargs)
            run.over = True
        except StopForward:
            pass

    @contextmanager
    def _running(self, run: _Run) -> Iterator[None]:
        """Let the hooks see which run it is that calls them."""
        self._current = run
        try:
            with quick_products(self._quick):
                yield
        finally:
            self._current = None

    def _give_up_beyond_budget(self, step: int, run: _Run) -> None:
        if run.waits is None:
            run.input = None
            return
        self._kept[step] = run.nbytes()
        if sum(self._kept.values()) > self._budget:
            self._end(run)
            self._kept[step] = 0

    def _end(self, run: _Run) -> None:
        if run.waits is not None:
            run.waits.throw()  # GreenletExit: the frames of the block are left
        run.waits, run.input = None, None

    def _hook(self, layer: nn.Module, group: int, *, first: bool) -> RemovableHandle:
        def called(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> None:
            run = self._current
            if run is None or kwargs is None:  # torch calls a hook without them once it is removed
                return
            value = args[0] if args else next(iter(kwargs.values()))
            serial = run.serials.serial(value)
            if not first:
                if run.serial_of_group.get(group) != serial:
                    raise Diverged(group)
                return
            if group <= run.group:
                raise Diverged(group)
            run.group, run.input = group, value
            run.serial_of_group[group] = serial
            if run.waits is not None:
                parent = getcurrent().parent
                assert parent is not None  # the greenlet that called inputs() or outputs()
                del args, kwargs, value
                parent.switch()
            elif group >= run.wanted:
                raise StopForward

        return layer.register_forward_pre_hook(called, with_kwargs=True)

    def _made(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take note of what a module of the block returned."""
        if self._current is None:
            return
        values = output if isinstance(output, tuple | list) else (output,)
        self._current.outputs += [weakref.ref(x) for x in values if isinstance(x, Tensor)]
