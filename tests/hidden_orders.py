"""Checkpoints whose hidden units come in a random order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dpq_core.tensor.checkpoint import Checkpoint
from dpq_core.tensor.hidden_axes import HiddenAxis, Orders, ReorderedCheckpoint


def shuffled(checkpoint: Checkpoint, axes: Sequence[HiddenAxis]) -> ReorderedCheckpoint:
    """A checkpoint with the units of each axis in a random order, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def order(axis: HiddenAxis) -> torch.Tensor:
        return torch.randperm(checkpoint.tensors[axis.consumer].shape[1], generator=generator)

    return ReorderedCheckpoint(checkpoint, Orders(axes, order))
