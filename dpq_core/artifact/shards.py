"""Where every byte of a plan will be: shards and their complete headers, before the first write.

A plan fixes the dtype and shape of every stored tensor, so files can be streamed: the header first,
then tensor after tensor, with one tensor in memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dpq_core.artifact import header
from dpq_core.artifact.header import Slot
from dpq_core.errors import ArtifactError
from dpq_core.plan import Plan, TensorPlan

INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Shard:
    """One weight file.

    Attributes:
        file: relative name.
        header: length prefix and header, the first bytes of the file.
        tensors: model tensor -> its stored tensors, in the order in which they are written.
    """

    file: str
    header: bytes
    tensors: dict[str, tuple[Slot, ...]]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self.end(next(reversed(self.tensors))) if self.tensors else len(self.header)

    def end(self, tensor: str) -> int:
        """Bytes of the file once ``tensor`` is written."""
        return len(self.header) + self.tensors[tensor][-1].end


def lay_out(plan: Plan, weights_name: str, shard_bytes: int) -> tuple[Shard, ...]:
    """Cut a plan into shards of at most ``shard_bytes`` of data; a larger tensor gets its own.

    Raises:
        ArtifactError: two stored tensors have one name, or a name or dtype cannot be stored.
    """
    groups: list[list[TensorPlan]] = [[]]
    filled = 0
    for tensor in plan:
        if groups[-1] and filled + tensor.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    names = [name for tensor in plan for name in tensor.stored()]
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ArtifactError(f"two stored tensors would be called {twice!r}; keep one dense")
    return tuple(
        _shard(group, file)
        for group, file in zip(groups, file_names(weights_name, len(groups)), strict=True)
    )


def _shard(group: Iterable[TensorPlan], file: str) -> Shard:
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
    flat = (slot for slots in tensors.values() for slot in slots)
    return Shard(file, header.encode(flat), tensors)


def file_names(weights_name: str, count: int) -> list[str]:
    """Names of ``count`` shards, as the Hugging Face libraries expect them."""
    if count == 1:
        return [f"{weights_name}.safetensors"]
    width = f"{weights_name}-{{:05d}}-of-{count:05d}.safetensors"
    return [width.format(number) for number in range(1, count + 1)]


def is_weights(weights_name: str, name: str) -> bool:
    """Whether ``name`` is reserved for a weight file or its index."""
    return name == weights_name + INDEX_SUFFIX or bool(_pattern(weights_name).fullmatch(name))


def _pattern(weights_name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(weights_name)}(-[0-9]{{5}}-of-([0-9]{{5}}))?\.safetensors")


def find_files(weights_name: str, names: Iterable[str], where: str) -> list[str]:
    """The weight files among ``names``: one file, or all shards of one complete set.

    Raises:
        ArtifactError: there is none, a shard is missing, or two sets are mixed.
    """
    pattern = _pattern(weights_name)
    found = {name: match for name in names if (match := pattern.fullmatch(name))}
    if not found:
        raise ArtifactError(f"{where}: lists no weight file {weights_name}.safetensors")
    counts = {int(match[2]) if match[2] else 1 for match in found.values()}
    wanted = file_names(weights_name, counts.pop())
    if counts or set(wanted) != set(found):
        missing = sorted(set(wanted) ^ set(found))[0]
        raise ArtifactError(f"{where}: weight files are not one complete set; see {missing!r}")
    return wanted


def index_json(files: Mapping[str, Iterable[Slot]]) -> dict[str, object]:
    """The Hugging Face index of several shards: which stored tensor is in which file."""
    total = sum(slot.end - slot.begin for slots in files.values() for slot in slots)
    weight_map = {
        slot.name: file.rpartition("/")[2] for file, slots in files.items() for slot in slots
    }
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def index_bytes(shards: Iterable[Shard]) -> bytes:
    """``index_json`` of planned shards, as it is written."""
    files = {s.file: [slot for slots in s.tensors.values() for slot in slots] for s in shards}
    text = json.dumps(index_json(files), indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()
