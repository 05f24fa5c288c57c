"""Which hidden unit of an artifact is which of the original: axes are reordered, orders not stored.

A quantized unit is still most like its own original, whatever its place. Units that are so much
alike that they are mistaken for each other may stand for each other: any order is the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_core.artifact import Artifact
from dpq_core.artifact.reader import tensor_plan
from dpq_core.planning.free_axes import free_axes
from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.hidden_axes import HiddenAxis, Orders, ReorderedCheckpoint
from dpq_core.tensor.plan import TensorPlan

if TYPE_CHECKING:
    from dpq_core.plugin.adapter import TensorAdapter

COORDINATES = 128
"""Weights per unit and tensor that are compared, at most."""

_CHUNK = 2048
"""Units that are compared with all others at a time."""

_ROUNDS = 32
"""What is left after these cannot be told apart, such as units without weights."""


def aligned(adapter: TensorAdapter[Any], original: Checkpoint, artifact: Artifact) -> Checkpoint:
    """The original, its hidden units in the order in which the artifact has them.

    Args:
        adapter: of both; says which axes there are.
        original: what the artifact was made of.
        artifact: read tensor by tensor, once an order is asked for.
    """
    plans = {
        entry.name: [_unstored(tensor_plan(artifact, entry))]
        for entry in artifact.manifest.tensors
        if entry.name in original.tensors and original.tensors[entry.name].shape == entry.shape
    }
    axes = free_axes(adapter.hidden_axes(original), plans).values()
    return ReorderedCheckpoint(original, Orders(axes, OrderMatch(original, artifact)))


def _unstored(plan: TensorPlan) -> TensorPlan:
    """``permute`` where columns may have been reordered, and not where their order is stored."""
    spec = plan.spec
    if spec is None or spec.orientation != "input" or spec.transform != "none":
        return plan
    return replace(plan, spec=spec.replace(permute=not spec.permute))


@dataclass(frozen=True)
class OrderMatch:
    """Finds the order of an axis in an artifact.

    Attributes:
        original: what the artifact was made of.
        artifact: its units may stand in another order.
    """

    original: Checkpoint
    artifact: Artifact

    def __call__(self, axis: HiddenAxis) -> Tensor:
        """Int64 ``[units]``: unit i of the artifact is unit ``order[i]`` of the original.

        Raises:
            SourceError: the original cannot be read.
            ArtifactError: the artifact cannot be read.
        """
        return match(_features(axis, self.artifact), _features(axis, self.original))


def _features(axis: HiddenAxis, model: Checkpoint | Artifact) -> Tensor:
    """What a unit looks like from all its sides, float32 ``[units, coordinates]``."""
    sides = [torch.nn.functional.normalize(side, dim=1) for side in _sides(axis, model)]
    return torch.cat(sides, dim=1)


def _sides(axis: HiddenAxis, model: Checkpoint | Artifact) -> Iterator[Tensor]:
    """Some weights of each unit in each tensor, ``[units, coordinates]``."""
    columns = model.read(axis.consumer).T
    units = len(columns)
    yield _some(columns)
    for producer in axis.producers:
        rows = model.read(producer.name)
        if rows.ndim > 1:  # one number says little
            for block in torch.split(rows.flatten(1), units):
                yield _some(block)


def _some(weights: Tensor) -> Tensor:
    """At most ``COORDINATES`` columns, evenly spaced, float32."""
    count = weights.shape[1]
    picked = torch.linspace(0, count - 1, min(count, COORDINATES)).round().long()
    return weights[:, picked].float()


def match(ours: Tensor, theirs: Tensor) -> Tensor:
    """One to one: the most similar first, in rounds of those that prefer each other.

    Args:
        ours: float32 ``[units, coordinates]``.
        theirs: the same units in another order, and not quite the same.

    Returns:
        Int64 ``[units]``: the row of ``theirs`` for each row of ``ours``.
    """
    order = torch.empty(len(ours), dtype=torch.int64)
    left, right = torch.arange(len(ours)), torch.arange(len(theirs))
    for _ in range(_ROUNDS):
        if not len(left):
            break
        best, back = _nearest(ours[left], theirs[right])
        mutual = back[best] == torch.arange(len(left))
        order[left[mutual]] = right[best[mutual]]
        taken = torch.zeros(len(right), dtype=torch.bool)
        taken[best[mutual]] = True
        left, right = left[~mutual], right[~taken]
    order[left] = right
    return order


def _nearest(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar row of ``theirs`` for each of ``ours``, and the reverse."""
    best = []
    peak = torch.full((len(theirs),), -torch.inf)
    back = torch.zeros(len(theirs), dtype=torch.int64)
    for first in range(0, len(ours), _CHUNK):
        similar = ours[first : first + _CHUNK] @ theirs.T
        best.append(similar.argmax(dim=1))
        highest, where = similar.max(dim=0)
        better = highest > peak
        peak = torch.where(better, highest, peak)
        back = torch.where(better, where + first, back)
    return torch.cat(best), back
