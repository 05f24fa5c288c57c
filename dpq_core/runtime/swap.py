"""Swap of the modules of any torch model for quantized ones, and back.

Loaders swap modules by name while the model is a skeleton (on the meta device, as libraries build
it). The modules are then filled like any others, because their state dict has the names under which
the parts are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from dpq_core.errors import ArtifactError, SourceError, SpecError
from dpq_core.runtime.conv import PQConv2d
from dpq_core.runtime.embedding import PQEmbedding
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.weight import PQWeight
from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import SafetensorsCheckpoint, TensorInfo
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import PQTensor, expected_parts

_Weight = TypeVar("_Weight", bound=PQWeight)

PQModule = PQLinear | PQEmbedding | PQConv2d


class PendingWeight(PQWeight):
    """A quantized weight of a module without counterpart, until ``decode_pending`` decodes it."""


def swap_in(model: nn.Module, path: str, spec: QuantSpec, *, decoded: bool = False) -> PQWeight:
    """Replace the Linear, Conv2d or Embedding at ``path`` by a quantized one without values.

    Its parts are allocated on the device of the replaced weight.

    A module of another kind stays, and a ``PendingWeight`` takes the place of its weight: call
    ``decode_pending`` once the parts are loaded.

    Args:
        model: a model in the dtype of its activations.
        path: path of the module, e.g. ``blocks.0.fc1``.
        spec: spec by which its weight was quantized.
        decoded: let the module stay whatever its kind, because others read its weight.

    Returns:
        The quantized weight, to be filled with its stored parts.

    Raises:
        ArtifactError: there is no such module, it has no such weight, or the spec does not fit.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ArtifactError(f"the model has no module {path!r}, which is quantized") from None
    layout = layout_of(module)
    if layout is None or decoded:
        return _pending(module, path, spec)
    dense: nn.Parameter = module.weight  # type: ignore[assignment]  # what has a layout has one
    weight = _empty_weight(PQWeight, path, dense, layout, spec)
    replace_module(model, path, weight)
    return weight


def layout_of(module: nn.Module) -> Layout | None:
    """Layout of the weight of a module; None where the module has no quantized counterpart."""
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward and not _reads_weight(module):
        return Layout.LINEAR
    if isinstance(module, nn.Conv2d) and forward is nn.Conv2d.forward:
        return Layout.CONV
    if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
        return Layout.EMBEDDING
    return None


def replace_module(model: nn.Module, path: str, weight: PQWeight) -> None:
    """Replace the module at ``path``, which has a layout, by its quantized counterpart."""
    module = model.get_submodule(path)
    if isinstance(module, nn.Embedding):
        set_module(model, path, PQEmbedding(weight, module.padding_idx))
    elif isinstance(module, nn.Conv2d):
        set_module(model, path, PQConv2d(weight, module))
    else:
        set_module(model, path, PQLinear(weight, module.bias))  # type: ignore[arg-type]


def _reads_weight(module: nn.Linear) -> bool:
    """Whether the module around a Linear uses its weight without calling it (torch's attention)."""
    return isinstance(module, NonDynamicallyQuantizableLinear)


def _pending(module: nn.Module, path: str, spec: QuantSpec) -> PendingWeight:
    """Put a ``PendingWeight`` in place of the weight of a module."""
    dense = getattr(module, "weight", None)
    if not isinstance(dense, nn.Parameter) or dense.ndim < 2:
        kind = type(module).__name__
        raise ArtifactError(
            f"{path!r} is quantized, but {kind} is no Linear, Conv2d or Embedding, nor has it a "
            "weight of two or more axes"
        )
    layout = Layout.LINEAR if dense.ndim == 2 else Layout.CONV
    weight = _empty_weight(PendingWeight, path, dense, layout, spec)
    del module.weight
    module.weight = weight
    return weight


def decode_pending(model: nn.Module) -> set[PQWeight]:
    """Decode every ``PendingWeight`` into its module, as an ordinary parameter.

    Returns:
        Those weights, which are no longer part of the model.

    Raises:
        ArtifactError: a weight is not in memory.
    """
    dense: dict[PQWeight, nn.Parameter] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        weight = module._modules.get("weight")
        if not isinstance(weight, PendingWeight):
            continue
        if weight.device.type == "meta":
            raise ArtifactError(
                f"{path!r}: {type(module).__name__} is decoded while it is loaded, which needs it "
                "in memory: leave it out of the offloaded part of device_map"
            )
        if weight not in dense:
            dense[weight] = nn.Parameter(weight.decode(weight.dense_dtype).detach(), False)
        del module._modules["weight"]
        module.weight = dense[weight]
    return set(dense)


def _empty_weight(
    kind: type[_Weight], path: str, dense: torch.Tensor, layout: Layout, spec: QuantSpec
) -> _Weight:
    """A quantized weight for a dense one, its parts allocated but not filled."""
    try:
        partition = Partition.of(tuple(dense.shape), layout, spec)
    except SpecError as error:
        raise ArtifactError(f"{path!r}: {error}") from None
    return kind(partition, spec, device=dense.device, dense_dtype=dense.dtype)


def swap_out(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every quantized module by a dense one with the decoded weight: undo ``swap_in``.

    Modules that shared a quantized weight share the dense one.
    """
    dense: dict[PQWeight, nn.Parameter] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, PQModule):
            if module.weight not in dense:
                value = module.weight.decode(dtype).detach()
                dense[module.weight] = nn.Parameter(value, requires_grad=False)
            set_module(model, path, _dense(module, dense[module.weight]))


def _dense(module: PQModule, weight: nn.Parameter) -> nn.Module:
    """The dense counterpart of a quantized module, with the given weight."""
    result: nn.Linear | nn.Embedding | nn.Conv2d
    if isinstance(module, PQEmbedding):
        entries, dim = weight.shape
        result = nn.Embedding(entries, dim, module.padding_idx, device="meta")
    elif isinstance(module, PQConv2d):
        result = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]  # the tuple that Conv2d itself kept
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            bias=False,
            padding_mode=module.padding_mode,
            device="meta",
        )
        result.bias = module.bias
    else:
        rows, cols = weight.shape
        result = nn.Linear(cols, rows, bias=False, device="meta")
        result.bias = module.bias
    result.weight = weight
    return result


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def check_files(weights: Mapping[str, PQWeight], files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Check that weight files hold the parts of all quantized weights, by their headers alone.

    Returns:
        Shape and dtype of every tensor in the files, by name.

    Raises:
        ArtifactError: a file is unreadable, or a part is missing or of another shape or dtype.
    """
    try:
        stored = SafetensorsCheckpoint("artifact", list(files)).tensors
    except SourceError as error:
        raise ArtifactError(str(error)) from None
    check_stored(weights, stored)
    return stored


def check_stored(weights: Mapping[str, PQWeight], stored: Mapping[str, TensorInfo]) -> None:
    """Check that the parts of all quantized weights are stored with the expected shapes and dtypes.

    Args:
        weights: quantized weights by the stored name of the weight.
        stored: shape and dtype of every tensor in the weight files, by name.

    Raises:
        ArtifactError: a part is missing or of another shape or dtype.
    """
    for name, weight in weights.items():
        for part, (dtype, shape) in expected_parts(weight.partition, weight.spec).items():
            info = stored.get(f"{name}.{part}")
            if info is None:
                raise ArtifactError(f"tensor '{name}.{part}' is missing from the weight files")
            if (info.dtype, info.shape) != (dtype, shape):
                raise ArtifactError(
                    f"tensor '{name}.{part}' is {info.dtype} {list(info.shape)}, the config asks "
                    f"for {dtype} {list(shape)}"
                )


def check_loaded(model: nn.Module) -> None:
    """Check the values of all quantized weights that are in memory.

    Raises:
        ArtifactError: a code is out of range, or a codebook or scale is not finite.
    """
    for path, module in model.named_modules():
        if isinstance(module, PQWeight) and module.device.type != "meta":
            parts = {name: value.detach() for name, value in module.state_dict().items()}
            try:
                PQTensor.from_parts(module.partition, module.spec, torch.float32, parts)
            except ArtifactError as error:
                raise ArtifactError(f"{path}: {error}") from None
