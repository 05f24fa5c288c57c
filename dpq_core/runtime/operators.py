"""Operators ``torch.ops.dpq``: what traces see of quantized weights, and gradients of inputs.

``torch.compile`` and ``torch.export`` cannot look into compiled loops; an operator is opaque to
them and has a fake kernel that tells its shape. Its arguments are tensors and strings only, so that
an exported program runs in any process that has imported ``dpq_core.runtime``. An operator
differentiates by its activations alone, without keeping anything dense: where parts of the weight
are trained, the modules run plain operations of torch, which can be traced and differentiated.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dpq_core.runtime import product
from dpq_core.runtime.decoding import Decodable
from dpq_core.spec import QuantSpec
from dpq_core.tensor.packing import UnpackedCache
from dpq_core.tensor.partition import Layout, Partition

_caches: MutableMapping[Tensor, UnpackedCache] = WeakTensorKeyDictionary()
"""Unpacked parts of the weights that operators have seen, by their codes."""


class _Weight(Decodable):
    """The quantized weight that the arguments of an operator describe."""

    def __init__(self, parts: Sequence[Tensor], names: str, kind: str) -> None:
        self.partition, self.dense_dtype = partition_of(kind), torch.float32
        self._parts = dict(zip(names.split(","), parts, strict=True))
        self.codes = self._parts["codes"]
        self._unpacked = _caches.setdefault(self.codes, UnpackedCache())

    def parts(self) -> dict[str, Tensor]:
        """The parts by name."""
        return self._parts


def kind_of(partition: Partition, spec: QuantSpec) -> str:
    """The string that tells operators what a weight is: JSON of its shape, layout and spec."""
    values = {"shape": partition.shape, "layout": partition.layout, "spec": spec.to_json()}
    return json.dumps(values, sort_keys=True)


@functools.lru_cache(maxsize=4096)
def partition_of(kind: str) -> Partition:
    """The partition of a weight that ``kind_of`` describes."""
    values = json.loads(kind)
    spec = QuantSpec.from_json(values["spec"])
    return Partition.of(tuple(values["shape"]), Layout(values["layout"]), spec)


@torch.library.custom_op("dpq::linear", mutates_args=())
def linear(tokens: Tensor, parts: Sequence[Tensor], names: str, kind: str) -> Tensor:
    """Product ``[tokens, R]`` of activations ``[tokens, C]`` and a weight; see ``multiply``.

    Args:
        tokens: activations ``[tokens, C]``.
        parts: stored parts of the weight.
        names: names of the parts, joined by commas.
        kind: see ``kind_of``.
    """
    with torch.no_grad():
        return product.multiply(tokens, _Weight(parts, names, kind)).contiguous()


@torch.library.custom_op("dpq::linear_back", mutates_args=())
def linear_back(gradient: Tensor, parts: Sequence[Tensor], names: str, kind: str) -> Tensor:
    """Gradients of the inputs of ``linear`` from those of its outputs; see ``multiply_back``."""
    with torch.no_grad():
        return product.multiply_back(gradient, _Weight(parts, names, kind)).contiguous()


@torch.library.custom_op("dpq::decode", mutates_args=())
def decode(parts: Sequence[Tensor], names: str, kind: str, dtype: torch.dtype) -> Tensor:
    """The dense weight in its original shape; arguments as for ``linear``."""
    with torch.no_grad():
        return _Weight(parts, names, kind).decode(dtype).contiguous()


@torch.library.custom_op("dpq::rows", mutates_args=())
def rows(
    index: Tensor, parts: Sequence[Tensor], names: str, kind: str, dtype: torch.dtype
) -> Tensor:
    """Rows ``[n, C]`` of the dense weight at int64 ``[n]``; other arguments as for ``linear``."""
    with torch.no_grad():
        return _Weight(parts, names, kind).rows(index, dtype).contiguous()


@linear.register_fake
def _(tokens: Tensor, parts: Sequence[Tensor], names: str, kind: str) -> Tensor:
    return tokens.new_empty(tokens.shape[0], partition_of(kind).rows)


@linear_back.register_fake
def _(gradient: Tensor, parts: Sequence[Tensor], names: str, kind: str) -> Tensor:
    return gradient.new_empty(gradient.shape[0], partition_of(kind).cols)


@decode.register_fake
def _(parts: Sequence[Tensor], names: str, kind: str, dtype: torch.dtype) -> Tensor:
    return parts[0].new_empty(partition_of(kind).shape, dtype=dtype)


@rows.register_fake
def _(index: Tensor, parts: Sequence[Tensor], names: str, kind: str, dtype: torch.dtype) -> Tensor:
    return parts[0].new_empty((index.shape[0], partition_of(kind).cols), dtype=dtype)


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the arguments after the activations for the backward pass."""
    _, parts, ctx.names, ctx.kind = inputs
    ctx.save_for_backward(*parts)


def _backward_by(operator: Callable[..., Tensor]) -> Callable[..., tuple[Any, ...]]:
    """The backward pass of a product whose transposed product is ``operator``."""

    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        parts = ctx.saved_tensors
        inner = operator(gradient, parts, ctx.names, ctx.kind)
        return inner, [None] * len(parts), None, None

    return backward


linear.register_autograd(_backward_by(linear_back), setup_context=_keep_weight)
linear_back.register_autograd(_backward_by(linear), setup_context=_keep_weight)


def as_under_autocast(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``run(x)`` with autocast's dtype for ``x``, and without autocast inside.

    A layer of torch computes in that dtype; what runs on codes has sums in float32, which autocast
    must not touch.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if x.dtype != torch.float64 else x.dtype
    with torch.autocast(device, enabled=False):
        return run(x.to(dtype))
