"""The layout of a plan in weight files: shards and their headers, known before the first write.

A plan fixes the dtype and shape of every stored tensor, so files can be streamed: the header first,
then tensor after tensor, with one tensor in memory.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dpq_core.artifact import header
from dpq_core.artifact.header import Slot
from dpq_core.errors import ArtifactError
from dpq_core.tensor.plan import Plan, TensorPlan

INDEX_SUFFIX = ".safetensors.index.json"

SHARD_BYTES = 4 * 10**9
"""Default limit of the data bytes of one weight file: 4 GB."""


@dataclass(frozen=True)
class Shard:
    """One weight file of an artifact.

    Attributes:
        component: component of the model, "" where a model has only one.
        file: relative name.
        header: length prefix and header, the first bytes of the file.
        tensors: model tensor -> its stored tensors, in the order in which they are written.
    """

    component: str
    file: str
    header: bytes
    tensors: dict[str, tuple[Slot, ...]]

    @property
    def nbytes(self) -> int:
        """Size of the whole file in bytes."""
        return self.end(next(reversed(self.tensors))) if self.tensors else len(self.header)

    def end(self, tensor: str) -> int:
        """Size of the file in bytes once ``tensor`` is written."""
        return len(self.header) + self.tensors[tensor][-1].end


def component_of(name: str, weights: Mapping[str, str]) -> str | None:
    """The component of a tensor: the part of its name before the first "/" (FORMAT.md, F8)."""
    component = "" if "" in weights else name.partition("/")[0]
    return component if component in weights and (not component or "/" in name) else None


def local(name: str, component: str) -> str:
    """The name of a stored tensor within the weight files of its component."""
    return name.removeprefix(f"{component}/") if component else name


def lay_out(plan: Plan, weights: Mapping[str, str], shard_bytes: int) -> tuple[Shard, ...]:
    """Cut a plan into shards of at most ``shard_bytes`` of data; a larger tensor gets its own.

    Args:
        plan: its tensors are written in this order, component by component.
        weights: component -> stem of its weight files.
        shard_bytes: largest number of data bytes of one weight file.

    Raises:
        ArtifactError: two stored tensors have one name, a tensor belongs to no component or comes
            between those of another, or a name or dtype cannot be stored.
    """
    names = [name for tensor in plan for name in tensor.stored()]
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ArtifactError(f"two stored tensors would be called {twice!r}; keep one dense")
    laid_out: list[Shard] = []
    by_component: dict[str, list[TensorPlan]] = {}
    for component, group in itertools.groupby(plan, lambda t: component_of(t.name, weights)):
        tensors = list(group)
        if component is None:
            raise ArtifactError(f"tensor {tensors[0].name!r} belongs to none of {list(weights)}")
        if component in by_component:
            raise ArtifactError(f"the tensors of component {component!r} do not stand together")
        by_component[component] = tensors
    for component in sorted(weights, key=[*by_component, *weights].index):
        groups = _groups(by_component.get(component, []), shard_bytes)
        files = file_names(weights[component], len(groups))
        laid_out.extend(_shard(component, g, file) for g, file in zip(groups, files, strict=True))
    return tuple(laid_out)


def _groups(tensors: Iterable[TensorPlan], shard_bytes: int) -> list[list[TensorPlan]]:
    groups: list[list[TensorPlan]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def _shard(component: str, group: Iterable[TensorPlan], file: str) -> Shard:
    tensors: dict[str, tuple[Slot, ...]] = {}
    position = 0
    for tensor in group:
        slots = []
        # Wide items first: the byte-sized codes would push codebooks to odd offsets.
        parts = sorted(tensor.stored().items(), key=lambda part: -part[1][0].itemsize)
        for name, (dtype, shape) in parts:
            end = position + dtype.itemsize * math.prod(shape)
            slots.append(Slot(name, dtype, tuple(shape), position, end))
            position = end
        tensors[tensor.name] = tuple(slots)
    flat = [slot for slots in tensors.values() for slot in slots]
    return Shard(component, file, header.encode(_local(flat, component)), tensors)


def _local(slots: Iterable[Slot], component: str) -> list[Slot]:
    return [replace(slot, name=local(slot.name, component)) for slot in slots]


def file_names(stem: str, count: int) -> list[str]:
    """Names of ``count`` shards, as the Hugging Face libraries expect them."""
    if count == 1:
        return [f"{stem}.safetensors"]
    width = f"{stem}-{{:05d}}-of-{count:05d}.safetensors"
    return [width.format(number) for number in range(1, count + 1)]


def is_weights(weights: Mapping[str, str], name: str) -> bool:
    """Whether ``name`` is reserved for a weight file or its index."""
    return any(
        name == stem + INDEX_SUFFIX or _pattern(stem).fullmatch(name) for stem in weights.values()
    )


def _pattern(stem: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(stem)}(-[0-9]{{5}}-of-([0-9]{{5}}))?\.safetensors")


def find_files(stem: str, names: Iterable[str], where: str) -> list[str]:
    """The weight files among ``names``: one file, or all shards of one complete set.

    Raises:
        ArtifactError: there is none, a shard is missing, or two sets are mixed.
    """
    pattern = _pattern(stem)
    matches = {name: match for name in names if (match := pattern.fullmatch(name))}
    if not matches:
        raise ArtifactError(f"{where}: lists no weight file {stem}.safetensors")
    counts = {int(match[2]) if match[2] else 1 for match in matches.values()}
    complete = file_names(stem, counts.pop())
    if counts or set(complete) != set(matches):
        missing = sorted(set(complete) ^ set(matches))[0]
        raise ArtifactError(f"{where}: weight files are not one complete set; see {missing!r}")
    return complete


def index_json(files: Mapping[str, Iterable[Slot]]) -> dict[str, object]:
    """The Hugging Face index of several shards: the file of each stored tensor.

    Args:
        files: relative name -> its slots, under the names that they have in the file.
    """
    total = sum(slot.end - slot.begin for slots in files.values() for slot in slots)
    weight_map = {
        slot.name: file.rpartition("/")[2] for file, slots in files.items() for slot in slots
    }
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def index_bytes(shards: Iterable[Shard]) -> bytes:
    """``index_json`` of the planned shards of one component, as it is written."""
    files = {
        shard.file: _local((s for slots in shard.tensors.values() for s in slots), shard.component)
        for shard in shards
    }
    text = json.dumps(index_json(files), indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()
