"""Reference: the uncompressed model on the same batches, beside the model that is being quantized.

A layer of the quantized model gets other inputs than it got before. What the differences cost is
made up for in its weight (docs/algorithms.md#sequential), for which both inputs are needed.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.data.sequential.activations import Activations
from dpq_core.data.sequential.block_runner import BlockRunner
from dpq_core.data.sequential.paused_runs import PausedRuns
from dpq_core.data.sequential.segments import Segment, Source
from dpq_core.data.statistics.hooks import CollectOptions, Collector, LayerStatistics
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.statistics.moment import add_products
from dpq_core.data.task import CalibrationTask
from dpq_core.tensor.partition import Layout


class Reference:
    """Runs of the uncompressed model through the block that is being quantized.

    They need no second model: within a block they are always one group of layers ahead of its
    quantization; those that were given up for the sake of memory are repeated with the original
    weights of the block. Where a block cannot be run alone, the reference ends.

    Attributes:
        runner: runs its blocks, and stores their inputs.
    """

    def __init__(
        self, task: CalibrationTask, batches: int, folder: Path, memory: int, *, quick: bool
    ) -> None:
        """Start with nothing stored.

        Args:
            task: its student is run.
            batches: number of training batches.
            folder: where inputs go that exceed the memory.
            memory: bytes of stored inputs and of suspended runs.
            quick: round products to bfloat16, where the processor does that quicker.
        """
        self.runner = BlockRunner(task, batches, Activations(folder, memory), quick=quick)
        self._runs: PausedRuns | None = None

    def start(self, segments: Sequence[Segment], finished: Collection[str]) -> None:
        """Store the inputs of the first block, while the model is uncompressed.

        Args:
            segments: all segments.
            finished: names of those that are not quantized any more.
        """
        paths = {s.block: s for s in segments if s.block is not None}
        first = next(iter(paths.items()), None)
        if first is None or first[1].source is Source.PREFIX or all(p in finished for p in paths):
            return
        self.runner.store_inputs(first[0])

    def pause(
        self,
        segment: Segment,
        groups: Sequence[Sequence[str]],
        originals: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Begin with a block, as ``BlockRunner.pause`` does, if its inputs are stored.

        Args:
            segment: the block.
            groups: paths of the layers of each group.
            originals: every weight that will be replaced, and a copy of what it was.
        """
        if self.runner.stored_block == segment.block:
            repeating = functools.partial(_replaced, originals)
            self._runs = self.runner.pause(segment, groups, repeating)

    def statistics(
        self,
        group: int,
        runs: PausedRuns,
        model: nn.Module,
        paths: Sequence[str],
        options: CollectOptions,
    ) -> dict[str, LayerStatistics]:
        """Statistics of a group of layers, with the drift of their input if there is a reference.

        Args:
            group: number of the group.
            runs: runs of the model that is being quantized.
            model: that model.
            paths: paths of the layers.
            options: what to keep.

        Raises:
            Diverged: as in ``PausedRuns.inputs``.
            SpecError: an input is NaN or infinite.
        """
        collector = Collector(model, paths, options)
        kind = LayerInput.of(model.get_submodule(paths[0]), options.conv_layouts.get(paths[0]))
        assert kind is not None  # else the collector had refused it
        paired = kind.layout is not Layout.EMBEDDING and not kind.routed
        inputs = self._inputs(group) if paired else None
        drift = None if inputs is None else Drift(kind, options.max_positions, options.seed)
        for step, value in runs.inputs(group):
            for path in paths:
                collector.add(path, value)
            if inputs is not None and drift is not None:
                drift.add(value, inputs.pop(step))
        statistics = collector.statistics()
        if drift is None:
            return statistics
        mean = drift.mean()
        return {path: replace(one, drift=mean) for path, one in statistics.items()}

    def _inputs(self, group: int) -> dict[int, Any] | None:
        """The input of a group of layers by batch; None where there is no reference."""
        if self._runs is None:
            return None
        return dict(self._runs.inputs(group))

    def go_ahead(self, group: int) -> None:
        """Run up to a group of layers, while all before it still have their original weights."""
        if self._runs is not None:
            self._runs.go_ahead(group)

    def advance(self, segment: Segment, following: Segment | None) -> None:
        """Leave a block, whose last layers still have their original weights."""
        if self.runner.stored_block == segment.block:
            self.runner.advance(segment, following)
        self._runs = None

    def end(self) -> None:
        """Delete all that is stored."""
        self.runner.clear()
        self._runs = None


@contextmanager
def _replaced(weights: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give tensors other values for a while."""
    values = [weight.clone() for weight, _ in weights]
    for weight, other in weights:
        weight.copy_(other)
    try:
        yield
    finally:
        for (weight, _), value in zip(weights, values, strict=True):
            weight.copy_(value)


class Drift:
    """The mean of (y - x) x^T over the inputs x of a layer and those it had before, y."""

    def __init__(self, kind: LayerInput, max_positions: int, seed: int) -> None:
        """Start with no inputs; the arguments are those of ``LayerInput.rows``."""
        self._kind, self._max_positions, self._seed = kind, max_positions, seed
        self._sum = torch.zeros(kind.cols, kind.cols, dtype=torch.float64)
        self._count = 0

    def add(self, x: Tensor, reference: Tensor) -> None:
        """Add the inputs of one batch."""
        for rows, before in zip(self._rows(x), self._rows(reference), strict=True):
            self._sum = self._sum.to(rows.device)
            add_products(self._sum, before.float() - rows.float(), rows)
            self._count += len(rows)

    def mean(self) -> Tensor:
        """E[(y - x) x^T], float32 ``[cols, cols]``; nothing can be added any more."""
        return self._sum.div_(max(self._count, 1)).float()

    def _rows(self, x: Tensor) -> Iterator[Tensor]:
        draw = torch.Generator().manual_seed(self._seed)
        return self._kind.rows(x, self._max_positions, draw)
