"""The order in which layers are quantized: segments (blocks, and what is between), and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from dpq_core.data.sequential.capture import BlockTrace, Call, Trace, Wiring
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.statistics.moment import moment_bytes
from dpq_core.tensor.partition import Layout


class Source(StrEnum):
    """Where the inputs of a segment come from.

    ``chain``: from the stored inputs of the previous block and its output.
    ``capture``: the model runs up to the block once, and the block's inputs are stored.
    ``prefix``: the model runs up to the segment's end for every pass; nothing is stored.
    """

    CHAIN = "chain"
    CAPTURE = "capture"
    PREFIX = "prefix"


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers that get the same input, or for which it does not matter who is quantized first.

    Attributes:
        paths: of the layers.
        stop: a layer at whose call all calls of this stage are over; None where there is none.
        shared: all get the same input.
    """

    paths: tuple[str, ...]
    stop: str | None = None
    shared: bool = True


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A block, or the layers that run between two blocks, before all or after all.

    Attributes:
        name: path of the block, or words that say where these layers run.
        block: its path; None for layers outside of blocks.
        until: path of the block that begins where these layers end; None: the model's end.
        source: where its inputs come from.
        wiring: of a block whose inputs are chained.
        stages: in the order in which they run.
    """

    name: str
    block: str | None
    until: str | None
    source: Source
    wiring: Wiring | None
    stages: tuple[LayerGroup, ...]


def make_segments(
    trace: Trace, unseen: Mapping[str, Sequence[str]], *, store_inputs: bool
) -> list[Segment]:
    """Cut the model into segments, in the order in which they run.

    Args:
        trace: of one batch.
        unseen: path of a block -> its layers that did not run in the trace, and may on other
            batches (experts); they come last in their block.
        store_inputs: False makes every source ``prefix``.
    """
    calls: dict[int, list[Call]] = {}
    first: dict[str, int] = {}
    for call in trace.calls:  # a layer belongs to the segment of its first call
        if first.setdefault(call.path, call.segment) == call.segment:
            calls.setdefault(call.segment, []).append(call)
    store_inputs &= not trace.repeated
    segments: list[Segment] = []
    for number, block in enumerate((*trace.blocks, None)):
        segments.append(_outside(number, trace.blocks, _stages(calls.get(2 * number, []))))
        if block is not None:
            stages = _stages(calls.get(2 * number + 1, []))
            late = tuple(unseen.get(block.path, ()))
            late_stage = (LayerGroup(paths=late, shared=False),) if late else ()
            source = _source(number, trace.blocks) if store_inputs else Source.PREFIX
            segments.append(
                Segment(
                    name=block.path,
                    block=block.path,
                    until=None,
                    source=source,
                    wiring=block.wiring if source is Source.CHAIN else None,
                    stages=(*stages, *late_stage),
                )
            )
    # Where blocks run repeatedly, a pass has to see all calls: it runs to the model's end.
    return [_whole(segment) for segment in segments] if trace.repeated else segments


def _source(number: int, blocks: Sequence[BlockTrace]) -> Source:
    block = blocks[number]
    if not block.replays:
        return Source.PREFIX
    chained = number > 0 and blocks[number - 1].replays and block.wiring is not None
    return Source.CHAIN if chained else Source.CAPTURE


def _outside(number: int, blocks: Sequence[BlockTrace], stages: tuple[LayerGroup, ...]) -> Segment:
    """The layers before block ``number`` that belong to no block."""
    name = f"before {blocks[number].path}" if number < len(blocks) else "after all blocks"
    return Segment(
        name=name,
        block=None,
        until=blocks[number].path if number < len(blocks) else None,
        source=Source.PREFIX,
        wiring=None,
        stages=stages,
    )


def _whole(segment: Segment) -> Segment:
    stages = tuple(replace(stage, stop=None) for stage in segment.stages)
    return replace(segment, block=None, until=None, stages=stages)


def _stages(calls: Sequence[Call]) -> tuple[LayerGroup, ...]:
    """Group the layers whose inputs are the same tensors, in the order of their first calls."""
    inputs: dict[str, tuple[int, ...]] = {}
    for call in calls:
        inputs[call.path] = (*inputs.get(call.path, ()), call.serial)
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, serials in inputs.items():
        groups.setdefault(serials, []).append(path)
    order = [call.path for call in calls]
    stages: list[LayerGroup] = []
    following: str | None = None  # first layer of the stage after
    for paths in reversed(groups.values()):
        last = max(i for i, path in enumerate(order) if path in paths)
        over = following is not None and last < order.index(following)
        stages.append(LayerGroup(paths=tuple(paths), stop=following if over else None))
        following = paths[0]
    return tuple(reversed(stages))


def passes(
    segment: Segment, inputs: Mapping[str, LayerInput], budget: int, *, each: bool
) -> list[LayerGroup]:
    """What is collected in one pass: stages one by one, or as many as the budget allows.

    Args:
        segment: to be cut.
        inputs: path -> kind of the layer.
        budget: bytes of the matrices of one pass; a single layer may exceed it.
        each: every stage gets passes of its own.
    """
    found: list[LayerGroup] = []
    used = 0
    for stage in segment.stages:
        whole = [stage] if stage.shared else [LayerGroup(paths=(path,)) for path in stage.paths]
        for number, part in enumerate(whole):
            needed = max(_nbytes(inputs[path]) for path in part.paths)
            if found and used + needed <= budget and (number > 0 or not each):
                stop = part.stop if found[-1].stop else None  # where both are over
                found[-1] = LayerGroup(paths=(*found[-1].paths, *part.paths), stop=stop)
                used += needed
            else:
                found.append(part)
                used = needed
    return found


def _nbytes(wanted: LayerInput) -> int:
    return moment_bytes(wanted.cols, wanted.layout is Layout.EMBEDDING)
