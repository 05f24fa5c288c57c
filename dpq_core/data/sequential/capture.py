"""Traces of how data flows from block to block, which let blocks be run alone."""

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
"""For each tensor argument of a block, its index among the outputs of the previous block; None
where it is the previous block's argument in the same place."""


class StopForward(BaseException):
    """Ends a forward pass early, from within a hook."""


@dataclass(frozen=True, kw_only=True)
class BlockTrace:
    """The trace of one block on one batch.

    Attributes:
        path: path of the block.
        replays: whether a second call with the same arguments gives the same output, bit for bit,
            and the arguments can be stored.
        wiring: how its arguments follow from the previous block; None where they do not.
    """

    path: str
    replays: bool
    wiring: Wiring | None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a layer.

    Attributes:
        path: path of the layer.
        segment: 2 k + 1 inside block k, 2 k before block k and outside all blocks.
        serial: number of its input, equal for the same tensor.
    """

    path: str
    segment: int
    serial: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The trace of a model on one batch.

    Attributes:
        blocks: traces of the blocks, in the order in which they ran.
        calls: calls of layers, in order.
        repeated: whether some block ran more than once.
    """

    blocks: tuple[BlockTrace, ...]
    calls: tuple[Call, ...]
    repeated: bool


def trace(
    model: nn.Module, layers: Iterable[str], blocks: Sequence[str], forward: Callable[[], Any]
) -> Trace:
    """Trace one forward pass; each block runs twice in it, to see whether it can be replayed.

    At most one block's arguments and output are held at a time.

    Args:
        model: the model, in eval mode.
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
        self._serials = TensorSerials()
        self._active: str | None = None
        self._muted = False
        self._argument_serials: list[int] = []  # serials of the arguments of the active block
        self._wiring: Wiring | None = None
        self._previous: _BlockCall | None = None

    def watch_layer(self, path: str, module: nn.Module) -> RemovableHandle:
        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._muted:
                return
            serial = self._serials.serial(args[0] if args else next(iter(kwargs.values())))
            inside = self._active is not None and path.startswith(f"{self._active}.")
            segment = 2 * len(self.blocks) + int(inside or path == self._active)
            self.calls.append(Call(path=path, segment=segment, serial=serial))

        return module.register_forward_pre_hook(called, with_kwargs=True)

    def watch_block(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._muted:
                self._block_begins(path, (args, kwargs))

        def leave(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            if not self._muted:
                self._block_ends(path, module, (args, kwargs), output)

        yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def _block_begins(self, path: str, arguments: Any) -> None:
        self.repeated |= any(block.path == path for block in self.blocks)
        self._active = path
        try:
            now = _BlockCall.of(arguments, None)
        except Unstorable:
            self._argument_serials, self._wiring = [], None
            return
        self._argument_serials = [self._serials.serial(x) for x in now.tensors]
        self._wiring = self._wiring_from_previous(now) if self._previous else None

    def _wiring_from_previous(self, now: _BlockCall) -> Wiring | None:
        before = self._previous
        assert before is not None
        if now.structure != before.structure:
            return None
        wiring: list[int | None] = []
        for x, serial, old in zip(now.tensors, self._argument_serials, before.tensors, strict=True):
            if serial in before.output:
                wiring.append(before.output.index(serial))
            elif x is old or same_values(x, old):
                wiring.append(None)
            else:
                return None
        return tuple(wiring)

    def _block_ends(self, path: str, module: nn.Module, arguments: Any, output: Any) -> None:
        self._previous, replays = None, False
        try:
            call = _BlockCall.of(arguments, output)
            changed = [self._serials.serial(x) for x in call.tensors] != self._argument_serials
            replays = not changed and self._replays(module, arguments, output)
            call.output = [self._serials.serial(x) for x in call.results]
            self._previous = call
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
        return alike and all(map(same_values, first, second))


@dataclass
class _BlockCall:
    """The arguments and the output of one call of a block.

    Attributes:
        structure: structure of the arguments, as ``flatten`` returns it.
        tensors: tensors of the arguments.
        results: tensors of the output.
        output: serial numbers of the tensors of the output.
    """

    structure: Any
    tensors: list[Tensor]
    results: list[Tensor]
    output: list[int]

    @classmethod
    def of(cls, arguments: Any, output: Any) -> _BlockCall:
        tensors: list[Tensor] = []
        results: list[Tensor] = []
        structure = flatten(arguments, tensors)
        flatten(output, results)
        return cls(structure, tensors, results, [])


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, in shape, dtype and device too."""
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and torch.equal(a, b)


def next_arguments(arguments: Any, output: Any, wiring: Wiring) -> Any:
    """The arguments of the next block, made from those of this block and its output.

    Raises:
        Unstorable: this batch does not flow as the traced one did.
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
def until(
    entering: nn.Module | None = None,
    before: nn.Module | None = None,
    after: nn.Module | None = None,
) -> Iterator[None]:
    """Within the ``with`` block, a forward pass ends where a module begins or ends.

    Where the module is never called, the pass runs to its end.
    """

    def stop(*_: Any) -> None:
        raise StopForward

    handles = []
    if entering is not None:
        handles.append(entering.register_forward_pre_hook(stop))
    if before is not None:
        handles.append(before.register_forward_pre_hook(stop, prepend=True))
    if after is not None:
        handles.append(after.register_forward_hook(stop))
    try:
        yield
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()


def arguments_of(module: nn.Module, forward: Callable[[], Any]) -> Any:
    """The (args, kwargs) of the first call of a module in ``forward``.

    Raises:
        Unstorable: the module is not called.
    """
    calls: list[Any] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise StopForward

    handle = module.register_forward_pre_hook(take, with_kwargs=True, prepend=True)
    try:
        forward()
    except StopForward:
        pass
    finally:
        handle.remove()
    if not calls:
        raise Unstorable("a batch does not reach the block")
    return calls[0]
