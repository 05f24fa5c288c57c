"""How much the loss of a model depends on the outputs of its layers: one backward pass for all.

The labels are drawn from the model's own predictions, so that the squared gradients are a Fisher
information that is not zero at the uncompressed model (docs/algorithms.md#gradients).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpq_core.data.task import Batch, CalibrationTask
from dpq_core.device import quick_products
from dpq_core.kernels.cpu import heap
from dpq_core.run import Progress, silent


@dataclass
class LayerGradients:
    """Squares of a linear layer's inputs x, and of the gradients of its outputs y = x W^T.

    Attributes:
        inputs: sum of the squared inputs, float64 ``[cols]``.
        seen: number of inputs in that sum.
        outputs: sum of the squared gradients of the outputs, float64 ``[rows]``.
        reached: number of outputs in that sum.
        row_energy: sum of the squares of each row of the weight, float64 ``[rows]``.
    """

    row_energy: Tensor
    inputs: Tensor | float = 0.0
    seen: int = 0
    outputs: Tensor | float = 0.0
    reached: int = 0

    def add_inputs(self, x: Tensor) -> None:
        """Add the inputs ``[..., cols]`` of one call."""
        rows = x.detach().float().flatten(0, -2)
        self.inputs = self.inputs + rows.square().sum(dim=0).double().cpu()
        self.seen += len(rows)

    def add_gradients(self, gradient: Tensor) -> None:
        """Add the gradients ``[..., rows]`` of the outputs of one call."""
        rows = gradient.detach().float().flatten(0, -2)
        self.outputs = self.outputs + rows.square().sum(dim=0).double().cpu()
        self.reached += len(rows)

    def sensitivity(self) -> float:
        """The rise of the loss per unit of relative error of the weight.

        The error is taken to be as large along each row as the row, and as error feedback leaves
        it: large where inputs are small, so that it meets their geometric mean.
        """
        if not isinstance(self.inputs, Tensor) or not isinstance(self.outputs, Tensor):
            return 0.0
        if not (self.seen and self.reached):  # an expert that no token reached
            return 0.0
        squares = (self.inputs / self.seen).clamp(min=1e-30)
        rise = (self.outputs / self.reached) @ self.row_energy * squares.log().mean().exp()
        return 0.5 * float(rise)


def collect_gradients(
    task: CalibrationTask,
    paths: Iterable[str],
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    quick: bool = True,
    progress: Progress = silent,
) -> dict[str, LayerGradients]:
    """Squared gradients of the outputs of some linear layers, from one pass over the batches.

    Args:
        task: its student is the uncompressed model.
        paths: paths of layers ``nn.Linear``; layers that do not run are missing in the result.
        batches: what the student looks at.
        seed: seed of the labels.
        quick: round products to bfloat16, where the processor does that quicker.
        progress: counts batches.

    Returns:
        Path -> gradients; empty where the task draws no labels.
    """
    layers: dict[str, LayerGradients] = {}
    model = task.student

    def watch(path: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                layer = layers.get(path)
                if layer is None:
                    layer = layers[path] = LayerGradients(_row_energy(module))
                layer.add_inputs(inputs[0])
                output.register_hook(layer.add_gradients)  # type: ignore[no-untyped-call]

        return module.register_forward_hook(after)

    handles = [watch(path, model.get_submodule(path)) for path in paths]
    generator = torch.Generator().manual_seed(seed)
    # Streamed blocks run anew in the backward pass, which would keep their weights otherwise.
    streaming = nullcontext() if task.streamed is None else task.streamed.recomputing()
    try:
        with streaming:
            for step, batch in enumerate(batches):
                samples = list(_samples(batch))
                if not samples:
                    return {}
                for alone in samples:  # one at a time takes less memory
                    with torch.enable_grad(), quick_products(quick):
                        loss = task.sampled_loss(alone, generator)
                        if loss is None:
                            return {}
                        loss.backward()  # type: ignore[no-untyped-call]
                        del loss
                    heap.give_back()
                progress("gradients", step + 1, len(batches))
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.grad = None
    return layers


def _row_energy(module: nn.Module) -> Tensor:
    """Sum of the squares of each row of a layer's weight, float64 ``[rows]``."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double().flatten(1).square().sum(dim=1).cpu()


def _samples(batch: Batch) -> Iterator[Batch]:
    """The samples of a batch, each as a batch of its own."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    for sample in range(min(map(len, tensors.values()), default=0)):
        yield {**batch, **{name: value[sample : sample + 1] for name, value in tensors.items()}}
