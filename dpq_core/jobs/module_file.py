"""``save`` and ``load_into``: a quantized torch module in one safetensors file, and back.

The file holds the parts of every quantized weight and all other tensors of the state dict under
their own names. Its metadata is versioned JSON with the spec and the layout of each weight; all of
it is checked on reading. Tensors that modules share are stored once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.artifact import header
from dpq_core.artifact.entries import TensorEntry
from dpq_core.artifact.files import reading, replacing, write_all
from dpq_core.artifact.header import Slot
from dpq_core.artifact.strict_json import one_line, shown
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.jobs.module_metadata import (
    KEY,
    MAX_TENSORS,
    VERSION,
    WEIGHT,
    ModuleMetadata,
    kept_tensors,
    parse_metadata,
)
from dpq_core.runtime import swap
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import QuantSpec
from dpq_core.tensor.pq_tensor import PQTensor, expected_parts


def save(model: nn.Module, path: str | Path) -> Path:
    """Write a module, with the weights that ``quantize_`` replaced, as one safetensors file.

    An existing file is replaced, and only once the new one is whole.

    Args:
        model: any module; ``load_into`` needs one of the same structure.
        path: the file, usually ``*.safetensors``.

    Raises:
        SpecError: a value of the state dict is no tensor.
        ArtifactError: a weight is not finite, or the file cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    specs: list[QuantSpec] = []
    weights: list[dict[str, Any]] = []
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    quantized_names: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, PQWeight):
            continue
        quantized_names |= {f"{name}.{part}" for part in module.parts()}
        if id(module) in first:
            shared[name] = first[id(module)]
            continue
        first[id(module)] = name
        if module.spec not in specs:
            specs.append(module.spec)
        weights.append(
            {
                "name": name,
                "shape": list(module.partition.shape),
                "dtype": "float32",
                "layout": str(module.partition.layout),
                "spec": specs.index(module.spec),
                "relative_error": None,
            }
        )
        tensors |= {f"{name}.{part}": value for part, value in module.pq().parts().items()}
    stored: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if name in quantized_names:
            continue
        if not isinstance(value, Tensor):
            raise SpecError(f"{name!r} in the state dict is {type(value).__name__}, not a tensor")
        place = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in stored:
            shared[name] = stored[place]
            continue
        stored[place] = name
        tensors[name] = value
    contents = {
        "version": VERSION,
        "specs": [spec.to_json() for spec in specs],
        "weights": weights,
        "shared": shared,
    }
    metadata = {KEY: json.dumps(contents, ensure_ascii=False, allow_nan=False)}
    slots, end = [], 0
    for name, value in tensors.items():
        begin, end = end, end + value.numel() * value.dtype.itemsize
        slots.append(Slot(name, value.dtype, tuple(value.shape), begin, end))
    with replacing(path) as partial, partial.open("wb", buffering=0) as file:
        write_all(file.fileno(), header.encode(slots, metadata))
        for value in tensors.values():
            plain = value.detach().cpu().contiguous()
            write_all(file.fileno(), plain.reshape(-1).view(torch.uint8).numpy().data)
    return path


def load_into(model: nn.Module, path: str | Path) -> nn.Module:
    """Give a module the weights in a file that ``save`` wrote; quantized ones run on their codes.

    Everything is checked before the module is touched.

    Args:
        model: built as the saved one was before ``quantize_``; changed in place.
        path: the file.

    Returns:
        The module.

    Raises:
        ArtifactError: the file is missing, damaged, hostile or of another version, or the module
            has other tensors than the file; the first names that differ are said.
    """
    path = Path(path)
    with reading(path):
        size = path.stat().st_size
        start, slots, metadata = header.read_with_metadata(path, size, MAX_TENSORS)
    contents = parse_metadata(metadata, str(path))
    kept = kept_tensors(contents, slots, str(path))
    _check_model(model, contents, kept, str(path))
    quantized = {
        entry.name: _weight(path, start, slots, contents, entry) for entry in contents.weights
    }
    values = {name: header.read_tensor(path, start, slots[name]) for name in kept}
    for name, other in contents.shared.items():
        if other in quantized:
            quantized[name] = quantized[other]
        else:
            values[name] = values[other]
    state = model.state_dict()
    for name, weight in quantized.items():
        device = state[name].device
        place = torch.device("cpu") if device.type == "meta" else device
        swap.replace_module(model, name.removesuffix(WEIGHT), weight.to(place))
        weight.requires_grad_(False)
    meta = any(value.is_meta for value in model.state_dict().values())
    model.load_state_dict(values, strict=False, assign=meta)
    return model


def _check_model(
    model: nn.Module, contents: ModuleMetadata, kept: Iterable[str], where: str
) -> None:
    """Refuse a module that has other tensors than the file.

    Raises:
        ArtifactError: the names or shapes differ.
    """
    state = model.state_dict()
    names = {*kept, *(entry.name for entry in contents.weights), *contents.shared}
    if missing := sorted(names - state.keys()):
        raise ArtifactError(f"{where}: the module has no {_some(missing)}; it is another model")
    if extra := sorted(state.keys() - names):
        raise ArtifactError(f"{where}: the module's {_some(extra)} are not in the file")
    entries = {entry.name: entry for entry in contents.weights}
    for name, entry in entries.items():
        _check_place(model, name, entry, where)
    for name, other in contents.shared.items():
        if other in entries:
            _check_place(model, name, entries[other], where, shared=True)


def _check_place(
    model: nn.Module, name: str, entry: TensorEntry, where: str, *, shared: bool = False
) -> None:
    """Refuse a module at whose place the weight cannot stand; a shared one may be seen otherwise.

    Raises:
        ArtifactError: the shape or the kind of the module differs.
    """
    module = model.get_submodule(name.removesuffix(WEIGHT))
    shape = tuple(getattr(module, "weight").shape)  # noqa: B009 - a module's attribute has no type
    layout = swap.layout_of(module)
    if layout is None or shape != entry.shape or not (shared or layout == entry.layout):
        raise ArtifactError(
            f"{where}: {shown(name)} is {entry.layout} {shown(list(entry.shape))}, the module's is "
            f"{type(module).__name__} {shown(list(shape))}; it is another model"
        )


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name) for name in names[:3]) + more


def _weight(
    path: Path, start: int, slots: Mapping[str, Slot], contents: ModuleMetadata, entry: TensorEntry
) -> PQWeight:
    """A quantized weight, its codes in range and its values finite.

    Raises:
        ArtifactError: they are not.
    """
    assert entry.spec is not None
    partition = contents.partition(entry, str(path))
    spec = contents.specs[entry.spec]
    parts = {
        part: header.read_tensor(path, start, slots[f"{entry.name}.{part}"])
        for part in expected_parts(partition, spec)
    }
    try:
        return PQWeight.from_pq(PQTensor.from_parts(partition, spec, torch.float32, parts))
    except ArtifactError as error:
        raise ArtifactError(f"{path}: tensor {shown(entry.name)}: {one_line(error)}") from None
