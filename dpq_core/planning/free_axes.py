"""Hidden axes that a plan can reorder without storing a permutation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dpq_core.tensor.hidden_axes import HiddenAxis
from dpq_core.tensor.partition import Layout
from dpq_core.tensor.plan import TensorPlan


def free_axes(
    axes: Iterable[HiddenAxis], plans: Mapping[str, Sequence[TensorPlan]]
) -> dict[str, HiddenAxis]:
    """The hidden axes that can be reordered without storing a permutation, by consumer.

    An axis is left out where a tensor is missing or of another shape, where no plan permutes the
    consumer's columns, and where the rows of a quantized producer cannot change places.

    Args:
        axes: the adapter's hidden axes; a tensor that two of them name in the same role excludes
            both.
        plans: tensor name -> the plans that the tensor may get.
    """
    named = list(axes)
    claims = Counter(("consumer", axis.consumer) for axis in named)
    claims.update(("producer", one.name) for axis in named for one in axis.producers)
    free: dict[str, HiddenAxis] = {}
    used: set[str] = set()
    for axis in named:
        producers = {one.name for one in axis.producers}
        names = producers | {axis.consumer}
        single = claims["consumer", axis.consumer] == 1 and all(
            claims["producer", name] == 1 for name in producers
        )
        if single and len(names) == 1 + len(producers) and not names & used and _fits(axis, plans):
            free[axis.consumer] = axis
            used |= names
    return free


def _fits(axis: HiddenAxis, plans: Mapping[str, Sequence[TensorPlan]]) -> bool:
    permuted = [p for p in plans.get(axis.consumer, ()) if p.spec is not None and p.spec.permute]
    if not permuted or not axis.producers:
        return False
    if any(p.partition is None or p.partition.layout is not Layout.LINEAR for p in permuted):
        return False
    units = permuted[0].info.shape[1]
    return all(
        name.name in plans and all(_movable(p, name.blocks * units) for p in plans[name.name])
        for name in axis.producers
    )


def _movable(plan: TensorPlan, rows: int) -> bool:
    """Whether the stored rows of a plan can be permuted like the rows of its tensor."""
    if plan.info.shape[:1] != (rows,):
        return False
    spec = plan.spec
    return spec is None or (
        spec.orientation == "input" and spec.transform == "none" and not spec.trellis_rate
    )
