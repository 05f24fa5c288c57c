"""Stage 1 with data: sequential quantization of a plan's tensors, before they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpq_core.data.sequential.block_store import BlockStore
from dpq_core.data.sequential.loop import SegmentReport, Sequential, SequentialOptions
from dpq_core.data.sequential.targets import TargetWeight
from dpq_core.data.statistics import LayerStatistics
from dpq_core.data.task import CalibrationTask
from dpq_core.device import resolve
from dpq_core.methods.output_aware import InputStatistics
from dpq_core.methods.quantize import quantize
from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.plan import Plan, TensorPlan
from dpq_core.tensor.pq_tensor import PQTensor

if TYPE_CHECKING:
    from dpq_core.run import Run


@dataclass(frozen=True)
class PlanQuantizer:
    """Quantizes a tensor as its plan says, with the statistics of its layer.

    Attributes:
        checkpoint: where the weights are read from, in their own dtype.
        plans: of the quantized tensors, by name.
        device: to compute on.
    """

    checkpoint: Checkpoint
    plans: Mapping[str, TensorPlan]
    device: torch.device

    def quantize(
        self, name: str, weight: Tensor, statistics: LayerStatistics
    ) -> tuple[PQTensor, float] | None:
        """Quantize the checkpoint's tensor; None when the model has made another weight of it."""
        plan = self.plans[name]
        spec = plan.own_spec  # the model keeps its order; hidden axes are reordered in the end
        assert spec is not None
        assert plan.partition is not None
        stored = self.checkpoint.read(name)
        if not torch.equal(stored.to(weight.dtype), weight.cpu()):
            return None
        result = quantize(
            stored.to(self.device),
            plan.partition,
            spec,
            name,
            statistics=known_inputs(statistics, self.device),
        )
        return result.pq, result.relative_error

    def restore(self, name: str, parts: Mapping[str, Tensor]) -> PQTensor:
        """A tensor from its stored parts."""
        plan = self.plans[name]
        spec = plan.own_spec
        assert spec is not None
        assert plan.partition is not None
        return PQTensor.from_parts(plan.partition, spec, plan.info.dtype, parts)


def known_inputs(statistics: LayerStatistics, device: torch.device) -> InputStatistics:
    """Statistics as the engine takes them.

    Half of an embedding's weight goes to its look-ups and half to all entries alike: a text that is
    short says little about the entries that it lacks.
    """
    counts = statistics.row_counts
    if counts is not None:
        counts = (0.5 + 0.5 * counts / counts.mean().clamp(min=1e-30)).to(device)
    hessian = statistics.hessian
    return InputStatistics(
        hessian=None if hessian is None else hessian.to(device), row_weight=counts
    )


@dataclass(frozen=True)
class Learned:
    """What sequential quantization has left; nothing, where there was no task.

    Attributes:
        store: the tensors.
        segments: what happened, in the order in which the model runs; empty where an earlier run
            had finished.
        weights: how many there are in the tensors that were to be quantized.
    """

    store: BlockStore | None = None
    segments: tuple[SegmentReport, ...] = ()
    weights: int = 0

    def missing(self, plan: Plan) -> tuple[str, ...]:
        """Quantized tensors of the plan that are not in the store, where there is one."""
        if self.store is None:
            return ()
        found = self.store.errors
        return tuple(t.name for t in plan if t.spec is not None and t.name not in found)


def learn(
    checkpoint: Checkpoint,
    plan: Plan,
    task: CalibrationTask,
    store: BlockStore,
    options: SequentialOptions,
    run: Run,
) -> Learned:
    """Fill the store with every tensor of the plan that has statistics.

    Args:
        checkpoint: the source.
        plan: its tensors.
        task: whose student is the source, uncompressed; its weights are replaced.
        store: new or resumed.
        options: how statistics are collected.
        run: device and progress; the progress is of this and of writing, which follows.
    """
    plans = {t.name: t for t in plan if t.partition is not None}
    weights = sum(t.info.numel for t in plans.values())
    if store.complete:
        return Learned(store=store, weights=weights)
    total = weights + sum(t.info.numel for t in plan)

    def progress(what: str, done: float, _: float) -> None:
        run.progress(what, done, total)

    work = Sequential(
        task,
        [_target(t) for t in plans.values()],
        PlanQuantizer(checkpoint, plans, resolve(run.device)),
        store,
        options=options,
        progress=progress,
    )
    work.run()
    return Learned(store=store, segments=tuple(work.reports), weights=weights)


def _target(plan: TensorPlan) -> TargetWeight:
    assert plan.partition is not None
    return TargetWeight(
        name=plan.name, shape=plan.info.shape, conv_layout=plan.partition.conv_layout
    )
