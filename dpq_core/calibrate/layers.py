"""The quantized weights of a student: where they are, their targets, and their trainable form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpq_core.data.task import CalibrationTask
from dpq_core.errors import GIVE_BASELINE, SourceError
from dpq_core.runtime.weight import PQWeight
from dpq_core.tensor.checkpoint import Checkpoint

SMALL = 1 << 16
"""Most elements of a dense parameter that is trained too: biases, norms, small tables."""


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized weight of a student.

    Attributes:
        path: path of the module that holds the weight as ``weight``.
        module: that module; the statistics are of its input.
        weight: the weight itself; layers that share it are listed once, by their first path.
        name: name of the tensor in the artifact and in the uncompressed source.
    """

    path: str
    module: nn.Module
    weight: PQWeight
    name: str


def quantized_layers(task: CalibrationTask) -> list[QuantizedLayer]:
    """All trained quantized weights of the student, in its order; puts them in trainable form."""
    layers: dict[PQWeight, QuantizedLayer] = {}
    for path, module in task.student.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, PQWeight) and weight not in layers and is_trained(weight):
            if not in_trainable_form(weight):
                weight.make_trainable()
            layers[weight] = QuantizedLayer(path, module, weight, task.tensor_name(path))
    return list(layers.values())


def prepare_student(model: nn.Module, *, small: int = SMALL) -> nn.Module:
    """Make a loaded model a student, in place: float32 codebooks and small parameters are trained.

    Args:
        model: model with ``PQWeight`` modules.
        small: dense parameters of at most that many elements are trained; all others stay fixed.

    Returns:
        The model.
    """
    quantized: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, PQWeight):
            module.make_trainable()
            quantized.update(module.parameters())
    for parameter in model.parameters():
        if parameter in quantized:
            continue
        trained = parameter.is_floating_point() and parameter.numel() <= small
        parameter.requires_grad_(False)
        if trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return model


def targets(checkpoint: Checkpoint) -> Callable[[QuantizedLayer], Tensor]:
    """A function that reads the original weight of a layer, float32 on the device of its codes.

    Raises (when called):
        SourceError: the baseline has no such tensor, or of another shape.
    """

    def read(layer: QuantizedLayer) -> Tensor:
        info = checkpoint.tensors.get(layer.name)
        if info is None or tuple(info.shape) != tuple(layer.weight.shape):
            theirs = "no such tensor" if info is None else f"shape {list(info.shape)}"
            raise SourceError(
                f"{checkpoint.source}: {layer.name!r} of the artifact has shape "
                f"{list(layer.weight.shape)}, here is {theirs}; is this the model that was "
                "compressed?",
                GIVE_BASELINE,
            )
        return checkpoint.read(layer.name).float().to(layer.weight.device)

    return read


def snapshot(student: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that calibration may change: trained parameters and buffers (codes)."""
    return {name: value.detach().clone() for name, value in changing(student).items()}


def restore(student: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """The inverse of ``snapshot``, in place."""
    current = changing(student)
    with torch.no_grad():
        for name, value in saved.items():
            current[name].copy_(value)


def changing(student: nn.Module) -> dict[str, Tensor]:
    """The trained parameters and the buffers of a student, by name."""
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    return {**trained, **dict(student.named_buffers())}


def round_student(student: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Round trained parameters to the values that will be stored, in place.

    Args:
        student: has its quantized weights in their trainable form.
        dtypes: name -> stored dtype of dense parameters; those that are missing stay as they are.

    Raises:
        ArtifactError: a value is not finite in its stored dtype.
    """
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, PQWeight) and is_trained(module):
                stored = PQWeight.from_pq(module.pq())
                stored.make_trainable()
                for parameter, rounded in zip(
                    module.parameters(), stored.parameters(), strict=True
                ):
                    parameter.copy_(rounded)
        for name, parameter in student.named_parameters():
            if parameter.requires_grad and name in dtypes:
                parameter.copy_(parameter.to(dtypes[name]))


def is_trained(weight: PQWeight) -> bool:
    """Whether the optimizer may change a weight."""
    return any(p.requires_grad for p in weight.parameters())


def in_trainable_form(weight: PQWeight) -> bool:
    """Whether ``make_trainable`` has been called."""
    floats = all(p.dtype == torch.float32 for p in weight.parameters())
    return floats and "codebook_scale" not in weight.parts()
