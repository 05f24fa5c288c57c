"""StreamedBlocks: blocks of a model whose weights are in memory only while they are needed.

A block's weights are read when it is about to run. They stay until another block runs, or longer
while somebody holds them, so that at most two blocks' weights are in memory at a time.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class StreamedBlocks:
    """The blocks of a model whose weights are read whenever they are needed.

    A path that is none of these blocks is taken for a block whose weights are always in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Mapping[str, nn.Parameter]],
        read: Callable[[str], Mapping[str, Tensor]],
    ) -> None:
        """Let the blocks of a model read their weights before they run; nothing is read yet.

        Args:
            model: the model, whose blocks lack these weights.
            weights: path of a block -> name of a parameter in the model -> what stands for it while
                it is not in memory, on the meta device.
            read: path of a block -> the values of its parameters, by the same names.
        """
        self._model, self._absent, self._read = model, weights, read
        self._loaded: set[str] = set()
        self._holders: Counter[str] = Counter()
        self._changes: dict[str, Callable[[], None]] = {}
        self._recomputes = False
        this = weakref.ref(self)  # no cycles: a model is to be freed with its last user
        for path in weights:
            block = model.get_submodule(path)
            block.forward = functools.partial(_run, this, path, weakref.ref(block))
            self._put(weights[path])

    def is_absent(self, path: str | None) -> bool:
        """Whether the weights of a block are not in memory."""
        return path in self._absent and path not in self._loaded

    def load(self, path: str | None) -> None:
        """Read the weights of a block into memory, unless they are there.

        Raises:
            SourceError: they cannot be read.
        """
        if path is None or not self.is_absent(path):
            return
        for other in [other for other in self._loaded if not self._holders[other]]:
            self._free(other)
        self._put({n: nn.Parameter(value, False) for n, value in self._read(path).items()})
        self._loaded.add(path)
        if path in self._changes:
            self._changes[path]()

    def change_when_loaded(self, path: str | None, change: Callable[[], None]) -> None:
        """Call a function from now on whenever a block's weights have been read.

        Args:
            path: path of the block.
            change: changes them in place.
        """
        if path in self._absent and path is not None:
            self._changes[path] = change

    @contextmanager
    def hold(self, path: str | None) -> Iterator[None]:
        """Within the ``with`` block, the weights of a block stay in memory once they are read."""
        if path is None or path not in self._absent:
            yield
            return
        self._holders[path] += 1
        try:
            yield
        finally:
            self._holders[path] -= 1
            if not self._holders[path] and path in self._loaded:
                self._free(path)

    @contextmanager
    def hold_all(self) -> Iterator[None]:
        """Within the ``with`` block, all blocks' weights stay in memory once they are read."""
        with ExitStack() as stack:
            for path in self._absent:
                stack.enter_context(self.hold(path))
            yield

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Within the ``with`` block, the backward pass runs each block anew with its weights.

        Otherwise autograd would keep the weights of all blocks. The gradients are the same, bit for
        bit (arXiv 1604.06174 with one segment per block).
        """
        self._recomputes = True
        try:
            yield
        finally:
            self._recomputes = False

    def _free(self, path: str) -> None:
        self._put(self._absent[path])
        self._loaded.discard(path)

    def _put(self, weights: Mapping[str, nn.Parameter]) -> None:
        for name, weight in weights.items():
            path, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(path), leaf, weight)

    def run(
        self, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The output of a block, run with its weights."""

        def loaded(*values: Any) -> Any:
            self.load(path)
            named = zip(kwargs, values[len(args) :], strict=True)
            return forward(*values[: len(args)], **dict(named))

        values = (*args, *kwargs.values())
        tensors = [value for value in values if isinstance(value, Tensor)]
        if self._recomputes and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return _Recomputed.apply(loaded, *values)  # type: ignore[no-untyped-call]
        return loaded(*values)


def _run(
    blocks: weakref.ref[StreamedBlocks],
    path: str,
    block: weakref.ref[nn.Module],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The forward method of a streamed block."""
    module, streamed = block(), blocks()
    assert module is not None  # it is running
    forward = functools.partial(type(module).forward, module)
    if streamed is None:
        return forward(*args, **kwargs)
    return streamed.run(path, forward, args, kwargs)


class _Recomputed(torch.autograd.Function):
    """A call of which the forward pass keeps the inputs alone; the backward pass calls again.

    ``torch.utils.checkpoint`` does the same after seconds of loading torch's compiler.
    """

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Any], *values: Any) -> Any:
        ctx.call, ctx.values = call, values
        return call(*values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        values = [
            value.detach().requires_grad_(value.requires_grad)
            if isinstance(value, Tensor)
            else value
            for value in ctx.values
        ]
        with torch.enable_grad():
            output = ctx.call(*values)
        outputs = output if isinstance(output, tuple) else (output,)
        reached = [
            (x, gradient)
            for x, gradient in zip(outputs, gradients, strict=True)
            if isinstance(x, Tensor) and x.requires_grad and gradient is not None
        ]
        torch.autograd.backward([x for x, _ in reached], [gradient for _, gradient in reached])
        return None, *(value.grad if isinstance(value, Tensor) else None for value in values)
