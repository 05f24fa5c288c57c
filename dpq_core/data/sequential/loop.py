"""Sequential: quantizes layers in the order in which data flows through the model.

Block by block: collect H = E[x x^T] of some layers with inputs from the already quantized part of
the model, quantize them, put the decoded weights in place, go on. Only the activations of one block
and the matrices of one pass are kept at a time. See docs/algorithms.md#sequential.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dpq_core.data.sequential.activations import Activations
from dpq_core.data.sequential.block_runner import BlockRunner
from dpq_core.data.sequential.block_store import BlockStore, FinishedTensor
from dpq_core.data.sequential.capture import trace
from dpq_core.data.sequential.segments import LayerGroup, Segment, Source, make_segments, passes
from dpq_core.data.sequential.targets import TargetWeight, blocks_of, layers_of, within
from dpq_core.data.statistics.hooks import MAX_POSITIONS, CollectOptions, LayerStatistics, collect
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.task import CalibrationTask
from dpq_core.errors import ArtifactError
from dpq_core.run import Progress, silent
from dpq_core.tensor.pq_tensor import PQTensor


@dataclass(frozen=True, kw_only=True)
class SequentialOptions:
    """Options of sequential quantization.

    Attributes:
        batches: most training batches to look at; never more than an epoch of the task.
        true_sequential: within a block, layers see inputs from the layers quantized before them;
            the block runs once more for every group of layers that share an input.
        memory: bytes of stored activations beyond which they go to disk, and of the matrices that
            are collected in one pass.
        store_inputs: keep the inputs of the current block; False runs the model anew for each pass.
        max_positions: most positions of a convolution's images that one batch adds.
        seed: seed of the draw of these positions.
        quick: let the model round its products to bfloat16, where the processor does that quicker.
    """

    batches: int = 32
    true_sequential: bool = True
    memory: int = 4 << 30
    store_inputs: bool = True
    max_positions: int = MAX_POSITIONS
    seed: int = 0
    quick: bool = True

    def to_json(self) -> dict[str, Any]:
        """The fields that decide the results, as JSON; memory and storage do not decide them."""
        values = dataclasses.asdict(self)
        return {key: values[key] for key in values if key not in ("memory", "store_inputs")}


class Quantizer(Protocol):
    """Quantizes one tensor at a time, and restores it from its stored parts."""

    def quantize(
        self, name: str, weight: Tensor, statistics: LayerStatistics
    ) -> tuple[PQTensor, float] | None:
        """Quantize one weight; returns it and its relative error, or None to leave it out.

        Args:
            name: name of the tensor in the artifact.
            weight: the weight in its original shape.
            statistics: statistics of the inputs of its layer.
        """

    def restore(self, name: str, parts: Mapping[str, Tensor]) -> PQTensor:
        """The quantized tensor made of its stored parts."""


@dataclass(frozen=True, kw_only=True)
class SegmentReport:
    """The report of one segment.

    Attributes:
        name: path of the block, or words that say where the layers run.
        source: where its inputs came from.
        tensors: names of the tensors that were quantized with statistics.
        passes: how often its part of the model ran over all batches.
        seconds: wall time.
        resumed: whether an earlier run had finished it.
    """

    name: str
    source: Source
    tensors: tuple[str, ...]
    passes: int = 0
    seconds: float = 0.0
    resumed: bool = False


class Sequential:
    """One run of sequential quantization over a model.

    Attributes:
        reports: reports of the segments that held targets, in order.
    """

    def __init__(
        self,
        task: CalibrationTask,
        targets: Sequence[TargetWeight],
        quantizer: Quantizer,
        store: BlockStore,
        *,
        options: SequentialOptions | None = None,
        progress: Progress = silent,
    ) -> None:
        """Find the layers of the targets; nothing runs yet.

        Args:
            task: its student is the uncompressed model, whose weights will be replaced.
            targets: the weights to quantize; those that belong to no Linear, Conv2d or Embedding,
                or whose layer never runs, are left out.
            quantizer: quantizes one tensor.
            store: where results go, with what an earlier run has finished.
            options: how statistics are collected.
            progress: counts weights.

        Raises:
            AdapterError: a block of the task lies within another.
        """
        self.reports: list[SegmentReport] = []
        self._task, self._model = task, task.student
        self._quantizer, self._store = quantizer, store
        self._options, self._progress = options or SequentialOptions(), progress
        self._targets = layers_of(task, targets)
        self._modules = {path: self._model.get_submodule(path) for path in self._targets}
        self._inputs: dict[str, LayerInput] = {}
        for path, target in self._targets.items():
            kind = LayerInput.of(self._modules[path], target.conv_layout)
            assert kind is not None  # layers_of() has seen to it
            self._inputs[path] = kind
        activations = Activations(store.scratch, self._options.memory)
        self._batches = min(self._options.batches, task.epoch or self._options.batches)
        self._runner = BlockRunner(task, self._batches, activations, quick=self._options.quick)
        self._done, self._total = 0, sum(math.prod(t.shape) for t in self._targets.values())

    def run(self) -> None:
        """Quantize everything that is not in the store yet.

        Raises:
            SpecError: a weight cannot be quantized, or a layer's input is NaN or infinite.
            ArtifactError: the store cannot be read or written.
        """
        training = self._model.training
        self._model.eval()
        shutil.rmtree(self._store.scratch, ignore_errors=True)
        try:
            with torch.no_grad():
                self._run()
            self._store.close()
        finally:
            self._runner.clear()
            self._model.train(training)
            shutil.rmtree(self._store.scratch, ignore_errors=True)

    def _run(self) -> None:
        segments = self._segments()
        left = [number for number, segment in enumerate(segments) if segment.layer_groups]
        for number, segment in enumerate(segments[: max(left, default=-1) + 1]):
            if segment.layer_groups:
                self._segment(segment)
            if segment.block is not None:
                rest = segments[number + 1 : max(left) + 1]
                following = next((later for later in rest if later.block is not None), None)
                if following is None and rest:
                    self._runner.finish(segment, rest[-1].layer_groups[-1].paths[-1])
                else:
                    self._runner.advance(segment, following)

    def _segments(self) -> list[Segment]:
        """Trace one batch through the unquantized model, and cut the model into segments."""
        blocks = blocks_of(self._task)
        seen = trace(
            self._model,
            self._targets,
            blocks,
            lambda: self._task.forward(self._model, self._task.train_batch(0)),
        )
        ran = {call.path for call in seen.calls}
        unseen = {
            block: [path for path in self._targets if within(path, block) and path not in ran]
            for block in blocks
        }
        return make_segments(seen, unseen, store_inputs=self._options.store_inputs)

    def _segment(self, segment: Segment) -> None:
        started = time.perf_counter()
        if segment.name in self._store.segments:
            names = self._restore(segment)
            count, resumed = 0, True
        else:
            names, count = self._quantize(segment)
            resumed = False
        self.reports.append(
            SegmentReport(
                name=segment.name,
                source=segment.source,
                tensors=names,
                passes=count,
                seconds=time.perf_counter() - started,
                resumed=resumed,
            )
        )

    def _restore(self, segment: Segment) -> tuple[str, ...]:
        """Put the weights of a finished segment in place."""
        paths = {self._targets[p].name: p for group in segment.layer_groups for p in group.paths}
        for name, tensor in self._store.restored(segment.name):
            if name not in paths:
                raise ArtifactError(
                    f"{self._store.folder}: {segment.name!r} has another tensor {name!r} than this "
                    "run; delete it to start over"
                )
            self._install(paths[name], self._quantizer.restore(name, tensor.parts))
        self._done += sum(math.prod(self._targets[path].shape) for path in paths.values())
        return tuple(self._store.segments[segment.name])

    def _quantize(self, segment: Segment) -> tuple[tuple[str, ...], int]:
        """Quantize a segment; returns its tensors and the number of passes."""
        options, finished = self._options, dict[str, FinishedTensor]()
        waiting: list[tuple[str, PQTensor]] = []
        parts = passes(segment, self._inputs, options.memory, each=options.true_sequential)
        for part in parts:
            self._progress(f"{segment.name}: statistics", self._done, self._total)
            statistics = self._collect(segment, part)
            for path in part.paths:
                pq = self._tensor(path, statistics.pop(path, None), finished)
                if pq is not None and options.true_sequential:
                    self._install(path, pq)
                elif pq is not None:
                    waiting.append((path, pq))
        for path, pq in waiting:
            self._install(path, pq)
        self._store.finish(segment.name, finished)
        return tuple(finished), len(parts)

    def _collect(self, segment: Segment, part: LayerGroup) -> dict[str, LayerStatistics]:
        options = CollectOptions(
            max_positions=self._options.max_positions,
            seed=self._options.seed,
            conv_layouts={path: self._targets[path].conv_layout for path in part.paths},
        )
        forward = functools.partial(self._runner.run, segment, part.stop)
        return collect(self._model, part.paths, forward, options)

    def _tensor(
        self,
        path: str,
        statistics: LayerStatistics | None,
        finished: dict[str, FinishedTensor],
    ) -> PQTensor | None:
        """Quantize one weight, unless its layer never ran."""
        target = self._targets[path]
        self._progress(target.name, self._done, self._total)
        self._done += math.prod(target.shape)
        if statistics is None:
            return None
        weight = self._modules[path].weight
        assert isinstance(weight, Tensor)
        result = self._quantizer.quantize(target.name, weight.detach(), statistics)
        if result is None:
            return None
        pq, error = result
        parts = {part: value.cpu() for part, value in pq.parts().items()}
        finished[target.name] = FinishedTensor(parts=parts, relative_error=error)
        return pq

    def _install(self, path: str, pq: PQTensor) -> None:
        """Give a layer the decoded weight, as it will be stored."""
        weight = self._modules[path].weight
        assert isinstance(weight, Tensor)
        weight.copy_(pq.decode(weight.dtype))
