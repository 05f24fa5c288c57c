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
        stop: path of the layer whose call is the last one of this group, where a pass may end;
            None where layers are called several times.
        stop_call: number of that call among all calls of the segment.
        shared: whether all layers get the same input.
    """

    paths: tuple[str, ...]
    stop: str | None = None
    stop_call: int = 0
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

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all its layers."""
        return tuple(path for group in self.layer_groups for path in group.paths)


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
    last = {call.path: number for number, call in enumerate(calls)}
    return tuple(
        LayerGroup(
            paths=tuple(paths),
            stop=paths[-1] if len(serials) == 1 else None,
            stop_call=last[paths[-1]],
        )
        for serials, paths in groups.items()
    )


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
                parts[-1] = _joined(parts[-1], part)
                used += needed
            else:
                parts.append(part)
                used = needed
    return parts


def _joined(group: LayerGroup, other: LayerGroup) -> LayerGroup:
    """The layers of two groups, collected in one pass: it ends where both are over."""
    later = max(group, other, key=lambda one: one.stop_call)
    stop = later.stop if group.stop and other.stop else None
    return LayerGroup(paths=(*group.paths, *other.paths), stop=stop, stop_call=later.stop_call)


def _nbytes(kind: LayerInput) -> int:
    return moment_bytes(kind.cols, kind.layout is Layout.EMBEDDING)
