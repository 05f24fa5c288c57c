"""Hidden axes that are reordered while a model is written: which order, and where it is kept.

An order is what the search for a permutation finds for the consumer's columns (``basis.choose``):
where there are statistics, while the consumer is quantized, else when the first tensor of the axis
is to be written. It is on disk before any of them, so that a resumed run cannot mix two orders.
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
        plans: of its tensors, by name.
        store: where orders are kept, and the results of sequential quantization; None where nothing
            is left to write.
        device: to compute on.
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
        found = store.read(plan.name if plan.name in store.errors else kept)
        return permutation_of(found.parts[_PART], plan.info.shape[1])

    def _search(self, plan: TensorPlan) -> Tensor:
        """As it would be stored without reordering, packed."""
        spec, partition = plan.own_spec, plan.partition
        assert spec is not None
        assert partition is not None
        matrix = partition.to_matrix(self.checkpoint.read(plan.name).to(self.device))
        basis.checked_rms(matrix, plan.name)
        return basis.choose(matrix, partition, spec, tensor_seed(spec.seed, plan.name))[_PART]


def orders_of(
    plan: Plan, checkpoint: Checkpoint, store: BlockStore | None, device: torch.device
) -> Orders:
    """The orders of the plan's hidden axes, none of which is looked for yet."""
    axes = [tensor.axis for tensor in plan if tensor.axis is not None]
    return Orders(axes, OrderSearch(checkpoint, {t.name: t for t in plan}, store, device))


def stored_parts(
    tensor: TensorPlan, parts: Mapping[str, Tensor], orders: Orders
) -> dict[str, Tensor]:
    """The parts of a quantized tensor as they are written, hidden units reordered.

    Args:
        tensor: its plan.
        parts: of the tensor, its rows in the order of the source, on the CPU.
        orders: of the plan.
    """
    assert tensor.partition is not None
    rows = orders.rows(tensor.name)
    found = dict(parts) if rows is None else reorder_rows(tensor.partition, parts, rows)
    if tensor.axis is not None:
        found.pop(_PART, None)
    return found
