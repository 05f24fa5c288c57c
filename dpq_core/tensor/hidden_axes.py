"""Hidden axes: units of a model whose order is free, so that permuting them costs nothing.

The rows of producers and the columns of a consumer are hidden units. Their order is free as long as
all that lies between acts on each unit alone, such as an activation function or a product with
another producer (PQF, arXiv 2010.15703, section 3.2; docs/algorithms.md#hidden-units). Only an
adapter knows which tensors these are (``Adapter.hidden_axes``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.packing import pack, unpack
from dpq_core.tensor.partition import Partition

_CODE_ROWS = 64
"""Rows of packed codes (groups of all stages) that are unpacked at a time."""


@dataclass(frozen=True)
class Producer:
    """A weight or bias whose rows are hidden units.

    Attributes:
        name: of a weight ``[blocks * units, ...]`` or a bias ``[blocks * units]``.
        blocks: equal blocks of rows that hold all units each: 2 where one weight makes the values
            and their gates.
    """

    name: str
    blocks: int = 1


@dataclass(frozen=True, kw_only=True)
class HiddenAxis:
    """Hidden units whose order is free, because no other tensor reads or writes them.

    Attributes:
        consumer: name of the weight ``[out, units]`` whose columns they are.
        producers: all tensors whose rows they are, biases included.
    """

    consumer: str
    producers: tuple[Producer, ...]


class Orders:
    """The orders of hidden axes, each computed when it is first needed."""

    def __init__(self, axes: Iterable[HiddenAxis], find: Callable[[HiddenAxis], Tensor]) -> None:
        """Remember the axes; no order is computed yet.

        Args:
            axes: no tensor belongs to two of them.
            find: computes the order of an axis, int64 ``[units]`` on the CPU: unit i of the new
                order is unit ``order[i]`` of the old one.
        """
        axes = list(axes)
        self._find = find
        self._order_of: dict[str, Tensor] = {}
        self._consumers = {axis.consumer: axis for axis in axes}
        self._producers = {
            producer.name: (axis, producer.blocks) for axis in axes for producer in axis.producers
        }

    def columns(self, name: str) -> Tensor | None:
        """The new order of a tensor's columns, int64 ``[units]``; None where they stay."""
        axis = self._consumers.get(name)
        return None if axis is None else self._order(axis)

    def rows(self, name: str) -> Tensor | None:
        """The new order of a tensor's rows, int64 ``[blocks * units]``; None where they stay."""
        if name not in self._producers:
            return None
        axis, blocks = self._producers[name]
        order = self._order(axis)
        return (torch.arange(blocks)[:, None] * len(order) + order).flatten()

    def apply(self, name: str, values: Tensor) -> Tensor:
        """Reorder the rows and columns of a tensor of the original model, on the CPU."""
        rows = self.rows(name)
        return self.in_columns(name, values if rows is None else values[rows])

    def in_columns(self, name: str, values: Tensor) -> Tensor:
        """Reorder only the columns of a tensor of the original model, on the CPU."""
        columns = self.columns(name)
        return values if columns is None else values[:, columns]

    def _order(self, axis: HiddenAxis) -> Tensor:
        """The order of one axis, computed once."""
        if axis.consumer not in self._order_of:
            self._order_of[axis.consumer] = self._find(axis)
        return self._order_of[axis.consumer]


class ReorderedCheckpoint(Checkpoint):
    """A checkpoint with its hidden units in another order: the same function, up to rounding."""

    def __init__(self, original: Checkpoint, orders: Orders) -> None:
        """Take over names, shapes and side files of the original; no tensor is read yet."""
        self._original, self._orders = original, orders
        self.source, self.tensors = original.source, original.tensors
        self.side_files, self.fingerprint = original.side_files, original.fingerprint

    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, reordered; only this one stays in memory."""
        return self._orders.apply(name, self._original.read(name))


def reorder_rows(
    partition: Partition, parts: Mapping[str, Tensor], rows: Tensor
) -> dict[str, Tensor]:
    """Stored parts of the same tensor with its rows in another order.

    Exact: every row keeps its codes and its scale.

    Args:
        partition: of the tensor, its subvectors along the inputs.
        parts: by name, on the CPU.
        rows: int64 ``[R]``: row i of the result is row ``rows[i]``.
    """
    p = partition
    codes = [
        pack(unpack(packed, p.code_bits, p.points)[:, rows], p.code_bits)
        for packed in torch.split(parts["codes"], _CODE_ROWS)
    ]
    reordered = {**parts, "codes": torch.cat(codes)}
    if "row_scale" in parts:
        reordered["row_scale"] = parts["row_scale"][rows]
    return reordered
