"""Sequential: quantizes layers in the order in which data flows through the model.

Block by block: collect H = E[x x^T] of some layers with inputs from the already quantized part of
the model, quantize them, put the decoded weights in place, go on. Only the activations of one block
and the matrices of one pass are kept at a time. See docs/algorithms.md#sequential.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Sequence

import torch

from dpq_core.data.sequential.activations import Activations
from dpq_core.data.sequential.block_runner import BlockRunner
from dpq_core.data.sequential.block_store import BlockStore, FinishedTensor
from dpq_core.data.sequential.capture import trace
from dpq_core.data.sequential.contract import Quantizer, SegmentReport, SequentialOptions
from dpq_core.data.sequential.layer_weights import LayerWeights
from dpq_core.data.sequential.paused_runs import PausedRuns
from dpq_core.data.sequential.reference import Reference
from dpq_core.data.sequential.resume_point import ResumePoint
from dpq_core.data.sequential.segments import LayerGroup, Segment, Source, make_segments, passes
from dpq_core.data.sequential.targets import TargetWeight, blocks_of, layers_of, within
from dpq_core.data.statistics.hooks import CollectOptions, Diverged, LayerStatistics, collect
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.task import CalibrationTask
from dpq_core.device import quick_products
from dpq_core.run import Progress, silent
from dpq_core.tensor.pq_tensor import PQTensor


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
        self._weights = LayerWeights(task, self._targets, quantizer, store)
        self._inputs: dict[str, LayerInput] = {}
        for path, target in self._targets.items():
            kind = LayerInput.of(self._weights.modules[path], target.conv_layout)
            assert kind is not None  # layers_of() has seen to it
            self._inputs[path] = kind
        activations = Activations(store.scratch, self._options.memory)
        self._batches = min(self._options.batches, task.epoch or self._options.batches)
        self._runner = BlockRunner(task, self._batches, activations, quick=self._options.quick)
        self._reference = Reference(
            task,
            self._batches,
            store.scratch / "reference",
            self._options.memory,
            quick=self._options.quick,
        )
        self._runners = {"model": self._runner, "reference": self._reference.runner}
        self._resume_point = ResumePoint(store.folder, store.scratch)
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
            self._resume_point.discard()
        finally:
            self._runner.clear()
            self._reference.end()
            self._model.train(training)
            shutil.rmtree(self._store.scratch, ignore_errors=True)

    def _run(self) -> None:
        segments = self._segments()
        left = [number for number, segment in enumerate(segments) if segment.layer_groups]
        begin = self._begin(segments)
        for number, segment in enumerate(segments[: max(left, default=-1) + 1]):
            rest = segments[number + 1 : max(left) + 1]
            following = next((later for later in rest if later.block is not None), None)
            with self._weights.hold(segment):
                if number == begin and segment.block and segment.name in self._store.segments:
                    self._runner.store_inputs(segment.block)
                if segment.layer_groups:
                    self._segment(segment, following)
                if segment.block is None or number < begin:
                    continue
                if following is None and rest:
                    self._runner.finish(segment, rest[-1].layer_groups[-1].paths[-1])
                else:
                    self._runner.advance(segment, following)
            if rest:
                self._resume_point.save(segments.index(following or rest[-1]), self._runners)

    def _begin(self, segments: Sequence[Segment]) -> int:
        """The number of the segment from which on the inputs of blocks are stored.

        In a resumed run it is where the stopped one was. Where that did not keep the inputs, it is
        the last block that the model has to run up to, before what is left; and past all segments
        where nothing is left.
        """
        number = self._resume_point.load(self._runners)
        if number is not None:
            return number
        finished = self._store.segments
        if all(segment.name in finished for segment in segments if segment.layer_groups):
            return len(segments)
        if self._options.true_sequential and self._options.correct_drift:
            self._reference.start(segments, finished)
        left = next((n for n, s in enumerate(segments) if s.name not in finished), len(segments))
        captured = [n for n, s in enumerate(segments[: left + 1]) if s.source is Source.CAPTURE]
        return max(captured, default=0)

    def _segments(self) -> list[Segment]:
        """Trace one batch through the unquantized model, and cut the model into segments."""
        blocks = blocks_of(self._task)
        batch = self._task.train_batch(0)
        forward = functools.partial(self._task.forward, self._model, batch)
        seen = self._resume_point.trace(lambda: trace(self._model, self._targets, blocks, forward))
        ran = {call.path for call in seen.calls}
        unseen = {
            block: [path for path in self._targets if within(path, block) and path not in ran]
            for block in blocks
        }
        return make_segments(seen, unseen, store_inputs=self._options.store_inputs)

    def _segment(self, segment: Segment, following: Segment | None) -> None:
        started = time.perf_counter()
        if segment.name in self._store.segments:
            self._reference.advance(segment, following)
            self._weights.restore(segment)
            self._done += sum(math.prod(self._targets[path].shape) for path in segment.paths)
            names, count, resumed = tuple(self._store.segments[segment.name]), 0, True
        else:
            names, count = self._quantize(segment, following)
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

    def _quantize(self, segment: Segment, following: Segment | None) -> tuple[tuple[str, ...], int]:
        """Quantize a segment; returns its tensors and the number of passes."""
        options = self._options
        self._weights.load(segment)
        parts = passes(segment, self._inputs, options.memory, each=options.true_sequential)
        finished = self._in_one_pass(segment, parts, following) if options.true_sequential else None
        count = len(parts) if finished is None else 1
        if finished is None:
            self._reference.advance(segment, following)
            finished = self._pass_by_pass(segment, parts)
        self._store.finish(segment.name, finished)
        self._weights.keep_finished(segment)
        return tuple(finished), count

    def _in_one_pass(
        self, segment: Segment, parts: Sequence[LayerGroup], following: Segment | None
    ) -> dict[str, FinishedTensor] | None:
        """Quantize a block while each batch goes through it once.

        None, and the model as it was, where the block cannot be run alone, its layers are called
        repeatedly, or batches go through it in different ways.
        """
        if not all(part.shared and part.stop for part in parts):
            return None
        groups = [part.paths for part in parts]
        runs = self._runner.pause(segment, groups)
        if runs is None:
            return None
        weights = [self._weights[path] for paths in groups for path in paths]
        originals = [(weight, weight.clone()) for weight in weights]
        self._reference.pause(segment, groups, originals)
        finished, done = dict[str, FinishedTensor](), self._done
        try:
            for number, part in enumerate(parts):
                self._progress(f"{segment.name}: statistics", self._done, self._total)
                statistics = self._collect_paused(runs, number, part)
                if number + 1 < len(parts):
                    self._reference.go_ahead(number + 1)
                else:
                    self._reference.advance(segment, following)
                    originals.clear()  # a whole block's weights
                for path in part.paths:
                    pq = self._tensor(path, statistics.pop(path, None), finished)
                    if pq is not None:
                        self._weights.install(path, pq)
        except Diverged:
            self._runner.end_pause()
            self._reference.end()
            for weight, original in originals:
                weight.copy_(original)
            self._done = done
            return None
        return finished

    def _pass_by_pass(
        self, segment: Segment, parts: Sequence[LayerGroup]
    ) -> dict[str, FinishedTensor]:
        """Quantize a segment with a pass over all batches for each part of it."""
        options, finished = self._options, dict[str, FinishedTensor]()
        waiting: list[tuple[str, PQTensor]] = []
        for part in parts:
            self._progress(f"{segment.name}: statistics", self._done, self._total)
            statistics = self._collect(segment, part)
            for path in part.paths:
                pq = self._tensor(path, statistics.pop(path, None), finished)
                if pq is not None and options.true_sequential:
                    self._weights.install(path, pq)
                elif pq is not None:
                    waiting.append((path, pq))
        for path, pq in waiting:
            self._weights.install(path, pq)
        return finished

    def _collect(self, segment: Segment, part: LayerGroup) -> dict[str, LayerStatistics]:
        forward = functools.partial(self._runner.run, segment, part.stop)
        return collect(self._model, part.paths, forward, self._collect_options(part))

    def _collect_paused(
        self, runs: PausedRuns, number: int, part: LayerGroup
    ) -> dict[str, LayerStatistics]:
        """The statistics of a group of layers that runs wait at."""
        options = self._collect_options(part)
        with quick_products(self._options.quick):
            return self._reference.statistics(number, runs, self._model, part.paths, options)

    def _collect_options(self, part: LayerGroup) -> CollectOptions:
        return CollectOptions(
            max_positions=self._options.max_positions,
            seed=self._options.seed,
            conv_layouts={path: self._targets[path].conv_layout for path in part.paths},
        )

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
        result = self._quantizer.quantize(target.name, self._weights[path], statistics)
        if result is None:
            return None
        pq, error = result
        parts = {part: value.cpu() for part, value in pq.parts().items()}
        finished[target.name] = FinishedTensor(parts=parts, relative_error=error)
        return pq
