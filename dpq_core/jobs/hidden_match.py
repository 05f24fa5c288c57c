"""Matching of an artifact's hidden units to those of the original, whose order is not stored.

A quantized unit is most similar to its own original, wherever it is. Units that are too similar to
be told apart may stand for each other: any order of them is the same model.
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
"""Most weights per unit and tensor that are compared."""

_CHUNK = 2048
"""Number of units that are compared with all others at a time."""

_ROUNDS = 32
"""Most rounds of matching; units left after them cannot be told apart (such as zero units)."""


def aligned(adapter: TensorAdapter[Any], original: Checkpoint, artifact: Artifact) -> Checkpoint:
    """The original model with its hidden units in the artifact's order.

    Args:
        adapter: adapter of both, which names the hidden axes.
        original: the model from which the artifact was made.
        artifact: the artifact, read tensor by tensor once an order is needed.
    """
    plans = {
        entry.name: [_unstored(tensor_plan(artifact, entry))]
        for entry in artifact.manifest.tensors
        if entry.name in original.tensors and original.tensors[entry.name].shape == entry.shape
    }
    axes = free_axes(adapter.hidden_axes(original), plans).values()
    return ReorderedCheckpoint(original, Orders(axes, OrderMatch(original, artifact)))


def _unstored(plan: TensorPlan) -> TensorPlan:
    """The plan with ``permute`` only where columns may be reordered without a stored order."""
    spec = plan.spec
    if spec is None or spec.orientation != "input" or spec.transform != "none" or spec.trellis_rate:
        return plan
    return replace(plan, spec=spec.replace(permute=not spec.permute))


@dataclass(frozen=True)
class OrderMatch:
    """Finds the order of an axis in an artifact.

    Attributes:
        original: the model from which the artifact was made.
        artifact: the artifact, whose units may be in another order.
    """

    original: Checkpoint
    artifact: Artifact

    def __call__(self, axis: HiddenAxis) -> Tensor:
        """The order int64 ``[units]``: unit i of the artifact is unit ``order[i]`` of the original.

        Raises:
            SourceError: the original cannot be read.
            ArtifactError: the artifact cannot be read.
        """
        return match(_features(axis, self.artifact), _features(axis, self.original))


def _features(axis: HiddenAxis, model: Checkpoint | Artifact) -> Tensor:
    """Features of each unit from all its tensors, float32 ``[units, coordinates]``."""
    sides = [torch.nn.functional.normalize(side, dim=1) for side in _sides(axis, model)]
    return torch.cat(sides, dim=1)


def _sides(axis: HiddenAxis, model: Checkpoint | Artifact) -> Iterator[Tensor]:
    """Some weights of each unit, tensor by tensor, ``[units, coordinates]``."""
    columns = model.read(axis.consumer).T
    units = len(columns)
    yield _some(columns)
    for producer in axis.producers:
        rows = model.read(producer.name)
        if rows.ndim > 1:  # one number says little
            for block in torch.split(rows.flatten(1), units):
                yield _some(block)


def _some(weights: Tensor) -> Tensor:
    """At most ``COORDINATES`` evenly spaced columns of a matrix, float32."""
    count = weights.shape[1]
    picked = torch.linspace(0, count - 1, min(count, COORDINATES)).round().long()
    return weights[:, picked].float()


def match(ours: Tensor, theirs: Tensor) -> Tensor:
    """A one-to-one matching of rows, in rounds of pairs that are most similar to each other.

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
