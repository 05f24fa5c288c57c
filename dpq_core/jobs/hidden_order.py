"""Orders of the hidden axes that are reordered while a model is written.

An order is the permutation of the consumer's columns that ``basis.choose`` finds: while the
consumer is quantized where there are statistics, else when the first tensor of the axis is written.
It is on disk before any of these tensors, so that a resumed run cannot mix two orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.data.sequential.block_store import BlockStore, FinishedTensor
from dpq_core.methods.quantize import tensor_seed
from dpq_core.tensor.basis import selection as basis
from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.hidden_axes import HiddenAxis, Orders, reorder_rows
from dpq_core.tensor.plan import Plan, TensorPlan
from dpq_core.tensor.pq_tensor import permutation_of

_PART = "permutation"


@dataclass(frozen=True)
class OrderSearch:
    """Finds the orders of a plan's hidden axes.

    Attributes:
        checkpoint: the source.
        plans: the plans of its tensors, by name.
        store: the store of orders and of the results of sequential quantization; None where
            nothing is left to write.
        device: device to compute on.
    """

    checkpoint: Checkpoint
    plans: Mapping[str, TensorPlan]
    store: BlockStore | None
    device: torch.device

    def __call__(self, axis: HiddenAxis) -> Tensor:
        """The order of an axis, int64 ``[units]``.

        Raises:
            SpecError: the consumer's weight holds NaN or infinite values.
            ArtifactError: the store cannot be read or written.
        """
        plan, store = self.plans[axis.consumer], self.store
        assert store is not None
        kept = f"order of {plan.name}"
        if plan.name not in store.errors and kept not in store.errors:
            parts = {_PART: self._search(plan).cpu()}
            store.finish(kept, {kept: FinishedTensor(parts=parts, relative_error=0.0)})
        stored = store.read(plan.name if plan.name in store.errors else kept)
        return permutation_of(stored.parts[_PART], plan.info.shape[1])

    def _search(self, plan: TensorPlan) -> Tensor:
        """The packed order, as the consumer would store its permutation."""
        spec, partition = plan.standalone_spec, plan.partition
        assert spec is not None
        assert partition is not None
        matrix = partition.to_matrix(self.checkpoint.read(plan.name).to(self.device))
        basis.checked_rms(matrix, partition, plan.name)
        return basis.choose(matrix, partition, spec, tensor_seed(spec.seed, plan.name))[_PART]


def orders_of(
    plan: Plan, checkpoint: Checkpoint, store: BlockStore | None, device: torch.device
) -> Orders:
    """The orders of the plan's hidden axes, each of which is searched when it is needed."""
    axes = [tensor.axis for tensor in plan if tensor.axis is not None]
    return Orders(axes, OrderSearch(checkpoint, {t.name: t for t in plan}, store, device))


def stored_parts(
    tensor: TensorPlan, parts: Mapping[str, Tensor], orders: Orders
) -> dict[str, Tensor]:
    """The parts of a quantized tensor as they are written, with hidden units reordered.

    Args:
        tensor: the plan of the tensor.
        parts: parts of the tensor, with rows in the order of the source, on the CPU.
        orders: orders of the plan's hidden axes.
    """
    assert tensor.partition is not None
    rows = orders.rows(tensor.name)
    reordered = dict(parts) if rows is None else reorder_rows(tensor.partition, parts, rows)
    if tensor.axis is not None:
        reordered.pop(_PART, None)
    return reordered
