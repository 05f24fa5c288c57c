"""The contract of sequential quantization: its options, a quantizer, a segment's report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dpq_core.data.sequential.segments import Source
from dpq_core.data.statistics.hooks import MAX_POSITIONS, LayerStatistics
from dpq_core.tensor.pq_tensor import PQTensor


@dataclass(frozen=True, kw_only=True)
class SequentialOptions:
    """Options of sequential quantization.

    Attributes:
        batches: most training batches to look at; never more than an epoch of the task.
        true_sequential: within a block, layers see inputs from the layers quantized before them;
            the block runs once more for every group of layers that share an input.
        correct_drift: let each weight make up for what its input has drifted from that of the
            uncompressed model; needs ``true_sequential``, and blocks that can be run alone.
        memory: bytes of stored activations, of the model and of the uncompressed one each, beyond
            which they go to disk; and of the matrices that are collected in one pass.
        store_inputs: keep the inputs of the current block; False runs the model anew for each pass,
            and corrects no drift.
        max_positions: most positions of a convolution's images that one batch adds.
        seed: seed of the draw of these positions.
        quick: let the model round its products to bfloat16, where the processor does that quicker.
    """

    batches: int = 32
    true_sequential: bool = True
    correct_drift: bool = True
    memory: int = 2 << 30
    store_inputs: bool = True
    max_positions: int = MAX_POSITIONS
    seed: int = 0
    quick: bool = True

    def to_json(self) -> dict[str, Any]:
        """The fields that decide the results, as JSON; memory does not decide them."""
        values = dataclasses.asdict(self)
        return {key: values[key] for key in values if key != "memory"}


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
