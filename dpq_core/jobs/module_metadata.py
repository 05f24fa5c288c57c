"""The metadata of a file that ``save`` writes: specs, layouts and shared tensors, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dpq_core.artifact import header, strict_json
from dpq_core.artifact.entries import TensorEntry, entry_from_json, spec_from_json
from dpq_core.artifact.header import Slot
from dpq_core.artifact.strict_json import one_line, shown
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Partition
from dpq_core.tensor.pq_tensor import expected_parts

VERSION = 1
"""Version of the metadata; a reader refuses any other."""

KEY = "dpq_module"
"""Name of the metadata entry."""

MAX_METADATA_BYTES = 64 << 20
MAX_TENSORS = 1_000_000

WEIGHT = ".weight"


@dataclass(frozen=True)
class ModuleMetadata:
    """The metadata of a file.

    Attributes:
        specs: the specs of the quantized weights.
        weights: the quantized weights.
        shared: name -> the name under which its tensor is stored.
    """

    specs: tuple[QuantSpec, ...]
    weights: tuple[TensorEntry, ...]
    shared: Mapping[str, str]

    def partition(self, entry: TensorEntry, where: str) -> Partition:
        """The partition of a quantized weight.

        Raises:
            ArtifactError: shape, layout and spec do not fit together.
        """
        assert entry.spec is not None
        assert entry.layout is not None
        try:
            return Partition.of(entry.shape, entry.layout, self.specs[entry.spec])
        except SpecError as error:
            raise ArtifactError(f"{where}: tensor {shown(entry.name)}: {one_line(error)}") from None


def parse_metadata(metadata: object, where: str) -> ModuleMetadata:
    """Read the metadata of a file, with every key, type and range checked.

    Raises:
        ArtifactError: it was not written by ``save``, or a value is impossible.
    """
    fields = strict_json.exactly(metadata, ("format", KEY), f"{where}: __metadata__")
    text = strict_json.text(fields[KEY], MAX_METADATA_BYTES, f"{where}: {KEY}")
    data = strict_json.parse(text.encode(), f"{where}: {KEY}")
    version = data.get("version")
    if type(version) is not int or version != VERSION:
        raise ArtifactError(
            f"{where}: module version {shown(version)} is not known; this dpq reads {VERSION}"
        )
    contents = strict_json.exactly(data, ("version", "specs", "weights", "shared"), where)
    specs = tuple(
        spec_from_json(spec, f"{where}: spec {i}")
        for i, spec in enumerate(strict_json.typed(contents["specs"], list, f"{where}: specs"))
    )
    weights = tuple(
        entry_from_json(entry, len(specs), where)
        for entry in strict_json.typed(contents["weights"], list, f"{where}: weights")
    )
    for entry in weights:
        if entry.spec is None or not entry.name.endswith(WEIGHT):
            raise ArtifactError(f"{where}: {shown(entry.name)} is no quantized weight")
    names = [entry.name for entry in weights]
    if len(frozenset(names)) != len(names):
        raise ArtifactError(f"{where}: two weights have the same name")
    shared = strict_json.typed(contents["shared"], dict, f"{where}: shared")
    for name, other in shared.items():
        strict_json.text(name, header.MAX_NAME_BYTES, f"{where}: shared")
        strict_json.text(other, header.MAX_NAME_BYTES, f"{where}: shared {shown(name)}")
        if other in shared or name in names:
            raise ArtifactError(f"{where}: {shown(name)} is shared in a circle")
    return ModuleMetadata(specs, weights, shared)


def kept_tensors(
    contents: ModuleMetadata, slots: Mapping[str, Slot], where: str
) -> tuple[str, ...]:
    """The names of the dense tensors, after a check of the parts of quantized weights.

    Raises:
        ArtifactError: a part is missing or of another type, or a shared tensor is not there.
    """
    parts: set[str] = set()
    for entry in contents.weights:
        assert entry.spec is not None
        partition = contents.partition(entry, where)
        for part, (dtype, shape) in expected_parts(partition, contents.specs[entry.spec]).items():
            name = f"{entry.name}.{part}"
            slot = slots.get(name)
            if slot is None or (slot.dtype, slot.shape) != (dtype, tuple(shape)):
                raise ArtifactError(
                    f"{where}: tensor {shown(name)} is not {dtype} {shown(list(shape))} "
                    f"({math.prod(shape) * dtype.itemsize} bytes)"
                )
            parts.add(name)
    kept = tuple(name for name in slots if name not in parts)
    names = {*kept, *(entry.name for entry in contents.weights)}
    for name, other in contents.shared.items():
        if other not in names or name in names:
            raise ArtifactError(f"{where}: {shown(name)} shares {shown(other)}, which is not there")
    return kept
