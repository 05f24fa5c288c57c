"""How data flows through the blocks of a model: traced once, then used to run blocks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpq_core.data.sequential.activations import Unstorable, flatten, unflatten
from dpq_core.data.statistics.hooks import TensorSerials

Wiring = tuple[int | None, ...]
"""For every tensor among a block's arguments: which tensor of the previous block's output it is, or
None where it is the same as among the previous block's arguments."""


class Reached(BaseException):
    """The forward pass has come as far as it is wanted."""


@dataclass(frozen=True, kw_only=True)
class BlockTrace:
    """What one batch showed of a block.

    Attributes:
        path: of the block.
        replays: called again with its arguments it gives the same output, bit for bit, and its
            arguments can be stored.
        wiring: how its arguments follow from the previous block; None where they do not.
    """

    path: str
    replays: bool
    wiring: Wiring | None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One layer was called.

    Attributes:
        path: of the layer.
        segment: 2 k + 1 inside of block k, 2 k before block k and outside of all.
        serial: number of its input, equal for the same tensor.
    """

    path: str
    segment: int
    serial: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one batch showed of a model.

    Attributes:
        blocks: in the order in which they ran.
        calls: of layers, in order.
        repeated: some block ran more than once.
    """

    blocks: tuple[BlockTrace, ...]
    calls: tuple[Call, ...]
    repeated: bool


def trace(
    model: nn.Module, layers: Iterable[str], blocks: Sequence[str], forward: Callable[[], Any]
) -> Trace:
    """Watch one forward pass; every block is run twice in it, to see whether it can be replayed.

    At most one block's arguments and output are held at a time.

    Args:
        model: in eval mode.
        layers: paths of the layers to watch.
        blocks: paths of the blocks, none inside another.
        forward: runs the model on one batch.
    """
    tracer = _Tracer()
    handles = [h for path in blocks for h in tracer.watch_block(path, model.get_submodule(path))]
    handles += [tracer.watch_layer(path, model.get_submodule(path)) for path in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return Trace(blocks=tuple(tracer.blocks), calls=tuple(tracer.calls), repeated=tracer.repeated)


class _Tracer:
    """The state of ``trace``."""

    def __init__(self) -> None:
        self.blocks: list[BlockTrace] = []
        self.calls: list[Call] = []
        self.repeated = False
        self._identities = TensorSerials()
        self._active: str | None = None
        self._muted = False
        self._entered: list[int] = []  # serials of the arguments of the active block
        self._wiring: Wiring | None = None
        self._previous: _Passed | None = None

    def watch_layer(self, path: str, module: nn.Module) -> RemovableHandle:
        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._muted:
                return
            serial = self._identities.serial(args[0] if args else next(iter(kwargs.values())))
            inside = self._active is not None and path.startswith(f"{self._active}.")
            segment = 2 * len(self.blocks) + int(inside or path == self._active)
            self.calls.append(Call(path=path, segment=segment, serial=serial))

        return module.register_forward_pre_hook(called, with_kwargs=True)

    def watch_block(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._muted:
                self._enter(path, (args, kwargs))

        def leave(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            if not self._muted:
                self._leave(path, module, (args, kwargs), output)

        yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def _enter(self, path: str, arguments: Any) -> None:
        self.repeated |= any(block.path == path for block in self.blocks)
        self._active = path
        try:
            now = _Passed.of(arguments, None)
        except Unstorable:
            self._entered, self._wiring = [], None
            return
        self._entered = [self._identities.serial(x) for x in now.tensors]
        self._wiring = self._wire(now) if self._previous else None

    def _wire(self, now: _Passed) -> Wiring | None:
        before = self._previous
        assert before is not None
        if now.structure != before.structure:
            return None
        wiring: list[int | None] = []
        for x, serial, old in zip(now.tensors, self._entered, before.tensors, strict=True):
            if serial in before.output:
                wiring.append(before.output.index(serial))
            elif x is old or _same(x, old):
                wiring.append(None)
            else:
                return None
        return tuple(wiring)

    def _leave(self, path: str, module: nn.Module, arguments: Any, output: Any) -> None:
        self._previous, replays = None, False
        try:
            passed = _Passed.of(arguments, output)
            changed = [self._identities.serial(x) for x in passed.tensors] != self._entered
            replays = not changed and self._replays(module, arguments, output)
            passed.output = [self._identities.serial(x) for x in passed.results]
            self._previous = passed
        except Unstorable:
            pass
        self.blocks.append(BlockTrace(path=path, replays=replays, wiring=self._wiring))
        self._active = None

    def _replays(self, module: nn.Module, arguments: Any, output: Any) -> bool:
        args, kwargs = arguments
        self._muted = True
        try:
            again = module(*args, **kwargs)
        finally:
            self._muted = False
        first: list[Tensor] = []
        second: list[Tensor] = []
        alike = flatten(output, first) == flatten(again, second)
        return alike and all(map(_same, first, second))


@dataclass
class _Passed:
    """Arguments and output of a block that has run.

    Attributes:
        structure: of the arguments, by ``flatten``.
        tensors: of the arguments.
        results: tensors of the output.
        output: their serial numbers.
    """

    structure: Any
    tensors: list[Tensor]
    results: list[Tensor]
    output: list[int]

    @classmethod
    def of(cls, arguments: Any, output: Any) -> _Passed:
        tensors: list[Tensor] = []
        results: list[Tensor] = []
        structure = flatten(arguments, tensors)
        flatten(output, results)
        return cls(structure, tensors, results, [])


def _same(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and torch.equal(a, b)


def next_arguments(arguments: Any, output: Any, wiring: Wiring) -> Any:
    """The arguments of the next block, from those of this one and its output.

    Raises:
        Unstorable: they are not wired as the first batch was.
    """
    tensors: list[Tensor] = []
    results: list[Tensor] = []
    structure = flatten(arguments, tensors)
    flatten(output, results)
    if len(tensors) != len(wiring) or len(results) <= max((w or 0 for w in wiring), default=0):
        raise Unstorable("another number of tensors than on the first batch")
    chosen = [
        old if source is None else results[source]
        for old, source in zip(tensors, wiring, strict=True)
    ]
    return unflatten(structure, chosen)


@contextmanager
def until(before: nn.Module | None = None, after: nn.Module | None = None) -> Iterator[None]:
    """End a forward pass in the block of the ``with`` where a module begins or ends.

    Where it never does, the pass runs to its end.
    """

    def stop(*_: Any) -> None:
        raise Reached

    handles = []
    if before is not None:
        handles.append(before.register_forward_pre_hook(stop, prepend=True))
    if after is not None:
        handles.append(after.register_forward_hook(stop))
    try:
        yield
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()


def arguments_of(module: nn.Module, forward: Callable[[], Any]) -> Any:
    """(args, kwargs) with which ``forward`` calls a module first.

    Raises:
        Unstorable: it does not.
    """
    found: list[Any] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise Reached

    handle = module.register_forward_pre_hook(take, with_kwargs=True, prepend=True)
    try:
        forward()
    except Reached:
        pass
    finally:
        handle.remove()
    if not found:
        raise Unstorable("a batch does not reach the block")
    return found[0]
