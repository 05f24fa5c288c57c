"""Sequential quantization of a plan's tensors, before they are written to the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpq_core.data.sequential.block_store import BlockStore
from dpq_core.data.sequential.contract import SegmentReport, SequentialOptions
from dpq_core.data.sequential.loop import Sequential
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
        plans: plans of the quantized tensors, by name.
        device: device to compute on.
    """

    checkpoint: Checkpoint
    plans: Mapping[str, TensorPlan]
    device: torch.device

    def quantize(
        self, name: str, weight: Tensor, statistics: LayerStatistics
    ) -> tuple[PQTensor, float] | None:
        """Quantize the checkpoint's tensor; None where the model's weight differs from it."""
        plan = self.plans[name]
        # The model keeps its order: hidden axes are reordered in the end.
        spec = plan.standalone_spec
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
            statistics=input_statistics(statistics, self.device),
        )
        return result.pq, result.relative_error

    def restore(self, name: str, parts: Mapping[str, Tensor]) -> PQTensor:
        """The quantized tensor made of its stored parts."""
        plan = self.plans[name]
        spec = plan.standalone_spec
        assert spec is not None
        assert plan.partition is not None
        return PQTensor.from_parts(plan.partition, spec, plan.info.dtype, parts)


def input_statistics(statistics: LayerStatistics, device: torch.device) -> InputStatistics:
    """The statistics of a layer's inputs in the form that ``quantize`` takes, on ``device``.

    Half of the weight of an embedding's entries is in proportion to their look-ups and half is
    equal for all: a short text says little about the entries that it lacks.
    """
    counts = statistics.row_counts
    if counts is not None:
        counts = (0.5 + 0.5 * counts / counts.mean().clamp(min=1e-30)).to(device)
    hessian = statistics.hessian
    drift = statistics.drift
    return InputStatistics(
        hessian=None if hessian is None else hessian.to(device),
        drift=None if drift is None else drift.to(device),
        row_weight=counts,
    )


@dataclass(frozen=True)
class SequentialResult:
    """The result of sequential quantization; empty where there was no task.

    Attributes:
        store: the store that holds the quantized tensors.
        segments: one report per segment, in the order in which the model runs; empty where an
            earlier run had finished.
        weights: number of weights in the tensors to be quantized.
    """

    store: BlockStore | None = None
    segments: tuple[SegmentReport, ...] = ()
    weights: int = 0

    def missing(self, plan: Plan) -> tuple[str, ...]:
        """The tensors of the plan that should be in the store and are not; none without a store."""
        if self.store is None:
            return ()
        errors = self.store.errors
        return tuple(t.name for t in plan if t.spec is not None and t.name not in errors)


def quantize_sequentially(
    checkpoint: Checkpoint,
    plan: Plan,
    task: CalibrationTask,
    store: BlockStore,
    options: SequentialOptions,
    run: Run,
) -> SequentialResult:
    """Quantize every tensor of the plan that has statistics, into the store.

    Args:
        checkpoint: the source.
        plan: the plan of its tensors.
        task: its student is the uncompressed source; the student's weights are replaced.
        store: new or resumed.
        options: how statistics are collected.
        run: device and progress; progress counts this and the writing that follows.
    """
    plans = {t.name: t for t in plan if t.partition is not None}
    weights = sum(t.info.numel for t in plans.values())
    if store.complete:
        return SequentialResult(store=store, weights=weights)
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
    return SequentialResult(store=store, segments=tuple(work.reports), weights=weights)


def _target(plan: TensorPlan) -> TargetWeight:
    assert plan.partition is not None
    return TargetWeight(
        name=plan.name, shape=plan.info.shape, conv_layout=plan.partition.conv_layout
    )
