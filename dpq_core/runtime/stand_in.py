"""StandIn: a module that answers like the dense parameter in whose place it is.

Libraries read ``layer.weight.dtype`` to cast activations, ``layer.weight.data`` to join projections
or to copy a table, and assign ``layer.weight.data`` to merge an adapter or to change the size of a
table. A quantized weight answers the first kind from its sizes and by decoding, and the last one by
making its layer an ordinary dense one.
"""

from __future__ import annotations

import functools
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dpq_core.tensor.partition import Partition


class Layer(Protocol):
    """A layer that runs on a stand-in."""

    def become_dense(self, weight: nn.Parameter) -> None:
        """Run on a dense weight from now on."""


class StandIn(nn.Module):
    """The stored parts of a weight, which casts of a model leave as they are.

    Attributes:
        partition: of the weight.
        dense_dtype: dtype of the dense weight that is meant; that of the model's activations.
    """

    partition: Partition
    dense_dtype: torch.dtype
    _dense: nn.Parameter | None

    def __init__(self, dense_dtype: torch.dtype) -> None:
        """Stand for a weight of this dtype."""
        super().__init__()
        self.dense_dtype = dense_dtype
        self._layers: weakref.WeakSet[Layer] = weakref.WeakSet()
        self.__dict__["_dense"] = None  # the parameter that has taken this one's place

    @abstractmethod
    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight in its original shape."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the parts."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense weight."""
        return torch.Size(self.partition.shape)

    @property
    def ndim(self) -> int:
        """Number of axes of the dense weight."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of axes of the dense weight."""
        return len(self.shape)

    def size(self, axis: int | None = None) -> torch.Size | int:
        """Shape of the dense weight, or the length of one axis."""
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the dense weight."""
        return self.dense_dtype

    @property
    def requires_grad(self) -> bool:
        """Whether a part is trained."""
        return any(part.requires_grad for part in self.parameters())

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        for part in self.parameters():
            if part.is_floating_point():
                part.requires_grad_(value)

    @property
    def data(self) -> Tensor:
        """A decoded copy of the weight; what is assigned or written to it makes the layer dense."""
        if self._dense is not None:
            return self._dense.data
        return DecodedCopy.of(self.decode(self.dense_dtype).detach(), self)

    @data.setter
    def data(self, value: Tensor) -> None:
        value = plain(value.detach())
        if self._dense is not None:
            self._dense.data = value
            return
        self.__dict__["_dense"] = nn.Parameter(value, requires_grad=self.requires_grad)
        for layer in list(self._layers):
            layer.become_dense(self.__dict__["_dense"])

    def __getitem__(self, index: Any) -> Tensor:
        """Rows or single weights, decoded."""
        rows: Tensor = plain(self.data)[index]
        return rows

    def index_copy(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """The decoded weight with some rows or columns replaced, as of a tensor."""
        result: Tensor = plain(self.data).index_copy(dim, index, source)
        return result

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The result of a function of torch for the decoded weight."""
        return func(*_decoded(args), **_decoded(kwargs or {}))

    def serve(self, layer: Layer) -> None:
        """Remember a layer that runs on this weight."""
        self._layers.add(layer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the parts; a cast changes ``dense_dtype`` and leaves them as they are stored."""
        self.dense_dtype = fn(torch.empty(0, dtype=self.dense_dtype, device=self.device)).dtype
        moved: Self = super()._apply(  # type: ignore[no-untyped-call]
            functools.partial(_moved, fn), recurse
        )
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """The state without the layers, which enter themselves again once they are copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_layers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._layers = weakref.WeakSet()


class DecodedCopy(Tensor):
    """A decoded weight; what is written into it in place becomes the weight of the layer.

    Functions of torch return ordinary tensors for it.
    """

    _stand_in: StandIn

    @classmethod
    def of(cls, decoded: Tensor, stand_in: StandIn) -> Tensor:
        """The decoded weight of a stand-in."""
        result = decoded.as_subclass(cls)
        result._stand_in = stand_in
        return result

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The result for the values, after which a write in place reaches the layer."""
        with torch._C.DisableTorchFunctionSubclass():
            values = tuple(plain(value) for value in args)
            result = func(*values, **(kwargs or {}))
            if args and isinstance(args[0], cls) and _writes(func.__name__):
                args[0]._stand_in.data = values[0]
        return result


def plain(value: Any) -> Any:
    """A decoded copy as an ordinary tensor; anything else as it is."""
    if not isinstance(value, DecodedCopy):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def _writes(name: str) -> bool:
    """Whether a method of tensors writes into its tensor, by its name: ``copy_``, ``__iadd__``."""
    if name.startswith("__"):
        return name in _IN_PLACE
    return name.endswith("_") and name != "requires_grad_"


_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}


def _decoded(values: Any) -> Any:
    """Arguments with decoded weights in place of the stand-ins among them, in lists as well."""
    if isinstance(values, StandIn):
        return plain(values.data)
    if isinstance(values, dict):
        return {name: _decoded(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_decoded(value) for value in values)
    return values


def _moved(fn: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """The result of ``fn`` for a part, in the dtype of the part."""
    moved = fn(part)
    return moved if moved.dtype == part.dtype else part.to(moved.device)
