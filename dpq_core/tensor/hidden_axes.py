"""Permutations that cost nothing at inference: reorder a hidden axis on both of its sides.

Between producers (their rows are the hidden units) and a consumer (its columns are) the order of
the units is free, as long as all that lies between acts on each unit alone, such as an activation
function or a product with another producer (PQF, arXiv 2010.15703, section 3.2;
docs/algorithms.md#permutation). Only
an adapter knows which tensors these are (``Adapter.hidden_axes``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.packing import pack, unpack
from dpq_core.tensor.partition import Partition

if TYPE_CHECKING:
    pass

_LINES = 64
"""Lines of codes that are unpacked at a time."""


@dataclass(frozen=True)
class Producer:
    """A tensor whose rows are hidden units.

    Attributes:
        name: of a weight ``[blocks * units, ...]`` or a bias ``[blocks * units]``.
        blocks: equal blocks of rows that hold all units each: 2 where one weight makes the values
            and their gates.
    """

    name: str
    blocks: int = 1


@dataclass(frozen=True, kw_only=True)
class HiddenAxis:
    """Hidden units whose order is free. Nothing else may read or write them.

    Attributes:
        consumer: name of the weight ``[out, units]`` whose columns they are.
        producers: all tensors whose rows they are, biases included.
    """

    consumer: str
    producers: tuple[Producer, ...]


class Orders:
    """The orders of hidden axes, each found when it is first asked for."""

    def __init__(self, axes: Iterable[HiddenAxis], find: Callable[[HiddenAxis], Tensor]) -> None:
        """Nothing is looked for yet.

        Args:
            axes: no tensor belongs to two of them.
            find: the order of an axis, int64 ``[units]`` on the CPU: unit i becomes ``order[i]``.
        """
        named = list(axes)
        self._find = find
        self._known: dict[str, Tensor] = {}
        self._consumers = {axis.consumer: axis for axis in named}
        self._producers = {one.name: (axis, one.blocks) for axis in named for one in axis.producers}

    def columns(self, name: str) -> Tensor | None:
        """The new order of a tensor's columns, int64 ``[units]``; None: as they are."""
        axis = self._consumers.get(name)
        return None if axis is None else self._of(axis)

    def rows(self, name: str) -> Tensor | None:
        """The new order of a tensor's rows, int64 ``[blocks * units]``; None: as they are."""
        if name not in self._producers:
            return None
        axis, blocks = self._producers[name]
        order = self._of(axis)
        return (torch.arange(blocks)[:, None] * len(order) + order).flatten()

    def apply(self, name: str, values: Tensor) -> Tensor:
        """A tensor of the original model on the CPU, its rows and columns reordered."""
        rows = self.rows(name)
        return self.in_columns(name, values if rows is None else values[rows])

    def in_columns(self, name: str, values: Tensor) -> Tensor:
        """A tensor of the original model on the CPU, only its columns reordered."""
        columns = self.columns(name)
        return values if columns is None else values[:, columns]

    def _of(self, axis: HiddenAxis) -> Tensor:
        if axis.consumer not in self._known:
            self._known[axis.consumer] = self._find(axis)
        return self._known[axis.consumer]


class ReorderedCheckpoint(Checkpoint):
    """A source with its hidden units in another order: the same function, up to rounding."""

    def __init__(self, original: Checkpoint, orders: Orders) -> None:
        """Take over the parts; no tensor is read yet."""
        self._original, self._orders = original, orders
        self.source, self.tensors = original.source, original.tensors
        self.side_files, self.fingerprint = original.side_files, original.fingerprint

    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, reordered; only this one stays in memory."""
        return self._orders.apply(name, self._original.read(name))


def reorder_rows(
    partition: Partition, parts: Mapping[str, Tensor], rows: Tensor
) -> dict[str, Tensor]:
    """The stored parts of a tensor -> those of the tensor with its rows in another order.

    Exact: every row keeps its codes and its scale.

    Args:
        partition: of the tensor, its subvectors along the inputs.
        parts: by name, on the CPU.
        rows: int64 ``[rows]``: row i becomes row ``rows[i]``.
    """
    p = partition
    lines = [
        pack(unpack(some, p.code_bits, p.points)[:, rows], p.code_bits)
        for some in torch.split(parts["codes"], _LINES)
    ]
    moved = {**parts, "codes": torch.cat(lines)}
    if "row_scale" in parts:
        moved["row_scale"] = parts["row_scale"][rows]
    return moved
