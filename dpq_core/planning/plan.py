"""Plans from one base spec: the spec of every tensor by rules for names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dpq_core.errors import SpecError
from dpq_core.planning.free_axes import free_axes
from dpq_core.spec import Override, QuantSpec, apply_overrides
from dpq_core.tensor.checkpoint import Checkpoint, TensorInfo
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from dpq_core.planning.policy import TensorPolicy


def make_plan(
    checkpoint: Checkpoint,
    adapter: TensorPolicy,
    spec: QuantSpec,
    overrides: Iterable[Override] = (),
) -> Plan:
    """Decide the spec of every tensor: adapter selection, adapter policy, then user overrides.

    Later overrides win; they can change or keep a selected tensor, not select a new one.

    Raises:
        SpecError: an override of the user matches no compressible tensor, or does not fit one.
    """
    user = tuple(overrides)
    policy, layouts = adapter.overrides(spec, checkpoint), adapter.layouts(checkpoint)
    plans: list[TensorPlan] = []
    used: set[int] = set()
    for name, info in checkpoint.tensors.items():
        layout = layouts.get(name)
        if layout is None:
            plans.append(plan_tensor(name, info, None, None))
            continue
        used |= {index for index, rule in enumerate(user) if rule.matches(name)}
        plans.append(plan_tensor(name, info, layout, apply_overrides(name, spec, (*policy, *user))))
    for index, rule in enumerate(user):
        if index not in used:
            raise SpecError(f"override {rule.pattern!r} matches no compressible tensor")
    free = free_axes(adapter.hidden_axes(checkpoint), {plan.name: [plan] for plan in plans})
    return Plan(tuple(plan.with_reordered_axis(free.get(plan.name)) for plan in plans))


def plan_tensor(
    name: str, info: TensorInfo, layout: Layout | None, spec: QuantSpec | None
) -> TensorPlan:
    """The plan of one tensor; orientation ``auto`` becomes the one of fewer bytes, or ``input``.

    The start of k-means is decided as well, so that the artifact holds every choice.

    Raises:
        SpecError: the spec does not fit the tensor.
    """
    if spec is None or layout is None:
        return TensorPlan(name=name, info=info)
    kmeans = spec.kmeans.resolved(spec.d, spec.K)
    axes: tuple[str, ...] = (spec.orientation,)
    if spec.orientation == "auto":
        axes = ("input",) if spec.group_scale or spec.permute else ("input", "output")
    try:
        plans = [
            TensorPlan(name=name, info=info, spec=s, partition=Partition.of(info.shape, layout, s))
            for s in (spec.replace(orientation=axis, kmeans=kmeans) for axis in axes)
        ]
    except SpecError as error:
        raise SpecError(f"tensor {name!r} {list(info.shape)}: {error}") from None
    return min(plans, key=lambda plan: plan.nbytes)
