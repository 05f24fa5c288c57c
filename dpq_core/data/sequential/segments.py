"""The order in which layers are quantized: segments of the model, and groups of layers in them.

A segment is a block, or the layers between two blocks; a group holds layers that share an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from dpq_core.data.sequential.capture import BlockTrace, Call, Trace, Wiring
from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.statistics.moment import moment_bytes
from dpq_core.tensor.partition import Layout


class Source(StrEnum):
    """The source of a segment's inputs.

    ``chain``: from the stored inputs of the previous block and its output.
    ``capture``: the model runs up to the block once, and the block's inputs are stored.
    ``prefix``: the model runs up to the segment's end for every pass; nothing is stored.
    """

    CHAIN = "chain"
    CAPTURE = "capture"
    PREFIX = "prefix"


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers that get the same input, or whose order does not matter.

    Attributes:
        paths: paths of the layers.
        stop: path of a layer that is called when all calls of this group are over; None where
            there is none.
        shared: whether all layers get the same input.
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
        wiring: the wiring of a block whose inputs are chained.
        layer_groups: groups of its layers, in the order in which they run.
    """

    name: str
    block: str | None
    until: str | None
    source: Source
    wiring: Wiring | None
    layer_groups: tuple[LayerGroup, ...]


def make_segments(
    trace: Trace, unseen: Mapping[str, Sequence[str]], *, store_inputs: bool
) -> list[Segment]:
    """Cut the model into segments, in the order in which they run.

    Args:
        trace: trace of one batch.
        unseen: path of a block -> its layers that did not run in the trace, and may run on other
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
        segments.append(_outside(number, trace.blocks, _layer_groups(calls.get(2 * number, []))))
        if block is not None:
            layer_groups = _layer_groups(calls.get(2 * number + 1, []))
            late = tuple(unseen.get(block.path, ()))
            late_group = (LayerGroup(paths=late, shared=False),) if late else ()
            source = _source(number, trace.blocks) if store_inputs else Source.PREFIX
            segments.append(
                Segment(
                    name=block.path,
                    block=block.path,
                    until=None,
                    source=source,
                    wiring=block.wiring if source is Source.CHAIN else None,
                    layer_groups=(*layer_groups, *late_group),
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


def _outside(
    number: int, blocks: Sequence[BlockTrace], layer_groups: tuple[LayerGroup, ...]
) -> Segment:
    """The layers before block ``number`` that belong to no block."""
    name = f"before {blocks[number].path}" if number < len(blocks) else "after all blocks"
    return Segment(
        name=name,
        block=None,
        until=blocks[number].path if number < len(blocks) else None,
        source=Source.PREFIX,
        wiring=None,
        layer_groups=layer_groups,
    )


def _whole(segment: Segment) -> Segment:
    layer_groups = tuple(replace(group, stop=None) for group in segment.layer_groups)
    return replace(segment, block=None, until=None, layer_groups=layer_groups)


def _layer_groups(calls: Sequence[Call]) -> tuple[LayerGroup, ...]:
    """Group the layers whose inputs are the same tensors, in the order of their first calls."""
    inputs: dict[str, tuple[int, ...]] = {}
    for call in calls:
        inputs[call.path] = (*inputs.get(call.path, ()), call.serial)
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, serials in inputs.items():
        groups.setdefault(serials, []).append(path)
    order = [call.path for call in calls]
    layer_groups: list[LayerGroup] = []
    following: str | None = None  # first layer of the group after
    for paths in reversed(groups.values()):
        last = max(i for i, path in enumerate(order) if path in paths)
        ends = following is not None and last < order.index(following)
        layer_groups.append(LayerGroup(paths=tuple(paths), stop=following if ends else None))
        following = paths[0]
    return tuple(reversed(layer_groups))


def passes(
    segment: Segment, inputs: Mapping[str, LayerInput], budget: int, *, each: bool
) -> list[LayerGroup]:
    """The groups of layers whose statistics are collected in one pass each.

    Args:
        segment: the segment to cut.
        inputs: path -> kind of the layer.
        budget: bytes of the matrices of one pass; a single layer may exceed it.
        each: whether every group gets its own passes; otherwise as many groups as the budget
            allows share one.
    """
    parts: list[LayerGroup] = []
    used = 0
    for group in segment.layer_groups:
        whole = [group] if group.shared else [LayerGroup(paths=(path,)) for path in group.paths]
        for number, part in enumerate(whole):
            needed = max(_nbytes(inputs[path]) for path in part.paths)
            if parts and used + needed <= budget and (number > 0 or not each):
                stop = part.stop if parts[-1].stop else None  # where both are over
                parts[-1] = LayerGroup(paths=(*parts[-1].paths, *part.paths), stop=stop)
                used += needed
            else:
                parts.append(part)
                used = needed
    return parts


def _nbytes(kind: LayerInput) -> int:
    return moment_bytes(kind.cols, kind.layout is Layout.EMBEDDING)
