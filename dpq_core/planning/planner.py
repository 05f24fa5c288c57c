"""The planner: a spec for every tensor, so that a model fits a budget with the least loss.

Every tensor has the same candidate specs, changed by the adapter's policy and the user's overrides.
The bytes of a candidate are exact; its cost is the relative error that a sample predicts
(``predict``), times how much the loss depends on the tensor (``sensitivity``; without data all
weights count alike). ``allocate`` chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from dpq_core.artifact.shards import SHARD_BYTES
from dpq_core.errors import SpecError
from dpq_core.methods.trellis.encode import column_energy
from dpq_core.methods.trellis.rates import expected_error
from dpq_core.planning.allocate import Choice, allocate
from dpq_core.planning.free_axes import free_axes
from dpq_core.planning.overhead import overhead
from dpq_core.planning.plan import plan_tensor
from dpq_core.planning.policy import TensorPolicy
from dpq_core.planning.predict import Curve, curve
from dpq_core.run import Progress, silent
from dpq_core.spec import Override, QuantSpec, apply_overrides
from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.plan import Plan, TensorPlan

GRID = (
    (8, 256),
    (8, 1024),
    (8, 4096),
    (6, 1024),
    (6, 4096),
    (4, 256),
    (4, 1024),
    (4, 4096),
    (3, 1024),
    (3, 4096),
    (2, 256),
    (2, 1024),
    (2, 4096),
    (1, 256),
)
"""d and K of the candidates: 1 to 8 bits per weight in steps of a quarter to a third at first."""


TRELLIS_RATES = tuple(quarters / 4 for quarters in range(3, 17))
"""Code bits per weight of the candidates with trellis codes: 0.75 to 4."""

BEYOND_TRELLIS = ((2, 1024), (2, 4096), (1, 256))
"""d and K of the candidates with more bits: 5, 6 and 8 per weight."""

HIGH_TRELLIS_RATES = tuple(quarters / 4 for quarters in range(17, 23))
"""Code bits per weight of trellis codes in place of the first of ``BEYOND_TRELLIS``: 4.25 to 5.5.

They are for budgets of more than ``HIGH_BUDGET``. In smaller ones they took bits from others for a
few tensors, and SmolLM2 in 46 MB had perplexity 33.3 instead of 32.5.
"""

HIGH_BUDGET = 4.0
"""Bits per weight of a budget from which on ``HIGH_TRELLIS_RATES`` are candidates."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The planner's decision for one tensor.

    Attributes:
        tensor: the plan of the tensor.
        error: predicted relative error, 0 for a tensor that is kept.
        cost: the error times the tensor's sensitivity.
        pinned: whether there was only one candidate, by an override for example.
    """

    tensor: TensorPlan
    error: float
    cost: float
    pinned: bool


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan for a budget.

    Attributes:
        chosen: the decision for each tensor, in storage order.
        nbytes: predicted size on disk in bytes, all files counted but a probe.
        budget: allowed size in bytes.
    """

    chosen: tuple[Chosen, ...]
    nbytes: int
    budget: int

    @property
    def plan(self) -> Plan:
        """The plan that ``compress`` takes."""
        return Plan(tuple(one.tensor for one in self.chosen))

    @property
    def cost(self) -> float:
        """The sum of the predicted costs."""
        return sum(one.cost for one in self.chosen)


def candidate_specs(
    base: QuantSpec, grid: Iterable[tuple[int, int]] | None = None, *, high: bool = False
) -> tuple[QuantSpec, ...]:
    """The base spec at every size of a grid.

    Args:
        base: the spec in all else.
        grid: subvector lengths and codebook sizes; None for ``GRID``, or for the rates of a trellis
            and ``BEYOND_TRELLIS`` where the base has a trellis.
        high: whether the budget is above ``HIGH_BUDGET``.
    """
    if grid is None and base.trellis_rate:
        rates = TRELLIS_RATES + (HIGH_TRELLIS_RATES if high else ())
        specs = tuple(base.replace(trellis_rate=rate) for rate in rates)
        return specs + candidate_specs(base, BEYOND_TRELLIS[1 if high else 0 :])
    return tuple(base.replace(d=d, K=K) for d, K in grid or GRID)


def plan_for_budget(
    checkpoint: Checkpoint,
    adapter: TensorPolicy,
    budget: int,
    specs: Iterable[QuantSpec],
    overrides: Iterable[Override] = (),
    *,
    sensitivity: Mapping[str, float] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
) -> Planned:
    """Choose a spec for every tensor so that the artifact fits the budget.

    Args:
        checkpoint: read tensor by tensor; only samples are kept.
        adapter: says what can be compressed, and its policy.
        budget: largest size of the artifact on disk in bytes, all files counted.
        specs: the candidate specs.
        overrides: the user's rules; a rule fixes the spec of the tensors that it names.
        sensitivity: tensor name -> the cost of a relative error of 1. A tensor that is missing
            costs as much per weight as the others do on average.
        shard_bytes: most data bytes of one weight file, each of which has a header.
        progress: called tensor by tensor.

    Raises:
        SpecError: the budget is too small, or an override matches nothing.
    """
    rules = tuple(overrides)
    _refuse_unused(checkpoint, adapter, rules)
    options = list(_options(checkpoint, adapter, tuple(specs), rules, progress))
    plans = {option[0][0].name: [plan for plan, _ in option] for option in options}
    free = free_axes(adapter.hidden_axes(checkpoint), plans)
    options = [
        [(plan.with_reordered_axis(free.get(plan.name)), error) for plan, error in o]
        for o in options
    ]
    weigh = _complete(sensitivity or {}, checkpoint)
    items = [
        [Choice(plan.nbytes, error * weigh[plan.name]) for plan, error in option]
        for option in options
    ]
    room = budget - overhead(
        checkpoint, adapter, Plan(tuple(o[0][0] for o in options)), shard_bytes
    )
    while True:
        picked = allocate(items, max(room, 0))
        plan = Plan(tuple(o[i][0] for o, i in zip(options, picked, strict=True)))
        total = plan.nbytes + overhead(checkpoint, adapter, plan, shard_bytes)
        if total <= budget:
            break
        room -= total - budget  # other specs need a longer manifest
    chosen = tuple(
        Chosen(tensor=o[i][0], error=o[i][1], cost=item[i].cost, pinned=len(o) == 1)
        for o, i, item in zip(options, picked, items, strict=True)
    )
    return Planned(chosen=chosen, nbytes=total, budget=budget)


def _complete(measured: Mapping[str, float], checkpoint: Checkpoint) -> dict[str, float]:
    """Sensitivities of all tensors: the measured ones, and the others by their size."""
    sizes = {name: info.numel for name, info in checkpoint.tensors.items()}
    shared = measured.keys() & sizes.keys()
    weights = sum(sizes[name] for name in shared)
    each = sum(measured[name] for name in shared) / weights if weights else 1.0
    return {name: measured.get(name, each * size) for name, size in sizes.items()}


Option = list[tuple[TensorPlan, float]]
"""The candidate plans of one tensor, each with its predicted relative error."""


def _options(
    checkpoint: Checkpoint,
    adapter: TensorPolicy,
    specs: tuple[QuantSpec, ...],
    rules: tuple[Override, ...],
    progress: Progress,
) -> Iterator[Option]:
    """The candidates of each tensor after policy and overrides, with their predicted errors."""
    total = sum(info.numel for info in checkpoint.tensors.values())
    layouts = adapter.layouts(checkpoint)
    policies = [(spec, adapter.overrides(spec, checkpoint)) for spec in specs]
    done = 0
    for name, info in checkpoint.tensors.items():
        progress(name, done, total)
        done += info.numel
        layout = layouts.get(name)
        choices = dict.fromkeys(
            apply_overrides(name, spec, (*policy, *rules)) for spec, policy in policies
        )
        plans = [
            plan_tensor(name, info, layout, spec) for spec in choices if layout or spec is None
        ]
        if layout is None or None in choices:
            yield [(plan_tensor(name, info, None, None), 0.0)]
            continue
        yield _predicted(checkpoint, plans)
    progress("done", total, total)


def _predicted(checkpoint: Checkpoint, plans: list[TensorPlan]) -> Option:
    if len(plans) == 1:
        return [(plans[0], 0.0)]
    values = checkpoint.read(plans[0].name)
    curves: dict[tuple[int, str], Curve] = {}
    option: Option = []
    energy: Tensor | None = None
    for plan in plans:
        if plan.spec is None or plan.partition is None:
            continue
        if plan.partition.row_bits:
            if energy is None:
                energy = column_energy(plan.partition.to_matrix(values), plan.partition)
            option.append((plan, expected_error(energy, plan.partition)))
            continue
        key = (plan.partition.d, plan.partition.orientation)
        if key not in curves:
            matrix = plan.partition.to_matrix(values)
            curves[key] = curve(matrix, plan.partition, plan.spec, plan.name)
        option.append((plan, curves[key].at(plan.partition.K)))
    return option


def compressible(checkpoint: Checkpoint, adapter: TensorPolicy) -> list[str]:
    """Names of the tensors that the adapter compresses."""
    layouts = adapter.layouts(checkpoint)
    return [name for name in checkpoint.tensors if name in layouts]


def _refuse_unused(
    checkpoint: Checkpoint, adapter: TensorPolicy, rules: tuple[Override, ...]
) -> None:
    names = compressible(checkpoint, adapter)
    for rule in rules:
        if not any(rule.matches(name) for name in names):
            raise SpecError(f"override {rule.pattern!r} matches no compressible tensor")


def bytes_of_bits(checkpoint: Checkpoint, bits: float) -> int:
    """Size in bytes of an artifact of ``bits`` per weight, all files counted."""
    weights = sum(info.numel for info in checkpoint.tensors.values())
    return math.floor(bits * weights / 8)
