"""The layers of a model that hold the weights to be quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dpq_core.data.statistics.layer_inputs import LayerInput
from dpq_core.data.task import CalibrationTask
from dpq_core.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class TargetWeight:
    """A weight that will be quantized.

    Attributes:
        name: name of the tensor in the artifact.
        shape: shape of the tensor.
        conv_layout: order of the columns of a convolution.
    """

    name: str
    shape: tuple[int, ...]
    conv_layout: str = "spatial"


def layers_of(task: CalibrationTask, targets: Sequence[TargetWeight]) -> dict[str, TargetWeight]:
    """The layer of each target: path of the layer -> target, in the order of the modules.

    A weight that an embedding shares with a linear layer belongs to the linear layer, whose inputs
    say more than how often each row is looked up.
    """
    targets_by_name = {target.name: target for target in targets}
    target_of: dict[str, TargetWeight] = {}
    assigned: set[nn.Module] = set()
    modules = dict(task.student.named_modules(remove_duplicate=False))
    embeddings_last = sorted(modules, key=lambda path: isinstance(modules[path], nn.Embedding))
    for path in embeddings_last:
        module = modules[path]
        weight = getattr(module, "weight", None)
        if module in assigned or not isinstance(weight, Tensor) or LayerInput.of(module) is None:
            continue
        target = targets_by_name.get(task.tensor_name(path))
        if target is not None and tuple(weight.shape) == target.shape:
            assigned.add(module)
            target_of[path] = targets_by_name.pop(target.name)
    return {path: target_of[path] for path in modules if path in target_of}


def within(path: str, block: str) -> bool:
    """Whether a module is the block itself or lies inside it."""
    return path == block or path.startswith(f"{block}.")


def blocks_of(task: CalibrationTask) -> Sequence[str]:
    """Paths of the task's blocks.

    Raises:
        AdapterError: a block lies within another.
    """
    blocks = task.blocks()
    for block in blocks:
        for other in blocks:
            if block != other and within(block, other):
                raise AdapterError(f"blocks() of the task: {block!r} lies within {other!r}")
    return blocks
