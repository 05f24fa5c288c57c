"""Which layers of a model hold the weights that are to be quantized."""

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
        name: in the artifact.
        shape: of the tensor.
        conv_layout: order of the columns of a convolution.
    """

    name: str
    shape: tuple[int, ...]
    conv_layout: str = "spatial"


def layers_of(task: CalibrationTask, targets: Sequence[TargetWeight]) -> dict[str, TargetWeight]:
    """Path of a layer -> the target that is its weight, in the order of the modules.

    A weight that is looked up and multiplied with is the multiplying layer's: its inputs say more
    than how often each row is asked for.
    """
    wanted = {target.name: target for target in targets}
    found: dict[str, TargetWeight] = {}
    known: set[nn.Module] = set()
    modules = dict(task.student.named_modules(remove_duplicate=False))
    looked_up_last = sorted(modules, key=lambda path: isinstance(modules[path], nn.Embedding))
    for path in looked_up_last:
        module = modules[path]
        weight = getattr(module, "weight", None)
        if module in known or not isinstance(weight, Tensor) or LayerInput.of(module) is None:
            continue
        target = wanted.get(task.tensor_name(path))
        if target is not None and tuple(weight.shape) == target.shape:
            known.add(module)
            found[path] = wanted.pop(target.name)
    return {path: found[path] for path in modules if path in found}


def within(path: str, block: str) -> bool:
    """Whether a module is a block, or inside of it."""
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
