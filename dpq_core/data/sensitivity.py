"""Sensitivity of a model's loss to each of its weights, with which the planner weighs errors.

One backward pass tells it where the task has a loss whose gradients do not vanish at the
uncompressed model (``dpq_core.data.gradients``); elsewhere a little noise is added to one weight
after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from dpq_core.data.gradients import collect_gradients
from dpq_core.data.task import Batch, CalibrationTask
from dpq_core.methods.quantize import tensor_seed
from dpq_core.run import Progress, silent

RELATIVE = 0.05
"""Energy of the noise over that of the weight: about the error at two bits per weight."""

_LEAST = 1e-6
"""Smallest sensitivity, as a share of the largest: noise may lower a loss by chance."""


def sensitivities(
    task: CalibrationTask,
    names: Iterable[str],
    *,
    batches: int = 2,
    relative: float = RELATIVE,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, float]:
    """The rise of the loss per unit of relative error, for each weight of the task's modules.

    Args:
        task: its student is the uncompressed model; it is left as it was.
        names: names of the tensors to measure.
        batches: validation batches to measure on.
        relative: ||noise||^2 over ||W||^2.
        seed: seed of the noise.
        progress: called weight by weight.

    Returns:
        Tensor name -> sensitivity, positive; names that no module has are left out.
    """
    requested, model = set(names), task.student
    data = list(task.validation())[:batches]
    was_training = model.training
    model.eval()
    weights = _weights(task, requested)
    rises = _by_gradient(task, weights, data, seed, progress)
    if not rises:
        rises = _by_noise(task, weights.keys(), data, relative, seed, progress)
    model.train(was_training)
    progress("done", len(weights), len(weights))
    least = _LEAST * max([*rises.values(), 1e-30])
    return {name: max(rise, least) for name, rise in rises.items()}


def _weights(task: CalibrationTask, names: Collection[str]) -> dict[str, nn.Parameter]:
    """The weights of the student's modules, by their names in the artifact."""
    weights: dict[str, nn.Parameter] = {}
    for path, module in task.student.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None and task.tensor_name(path) in names:
            weights.setdefault(task.tensor_name(path), weight)
    return weights


def _by_gradient(
    task: CalibrationTask,
    weights: Mapping[str, nn.Parameter],
    batches: Sequence[Batch],
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """The sensitivities of the linear layers among the weights; empty where there is no loss."""
    names = {id(weight): name for name, weight in weights.items()}
    paths = {
        path: names[id(module.weight)]
        for path, module in task.student.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear) and id(module.weight) in names
    }
    layers = collect_gradients(task, paths, batches, seed=seed, progress=progress)
    return {paths[path]: layer.sensitivity() for path, layer in layers.items()}


def _by_noise(
    task: CalibrationTask,
    names: Collection[str],
    batches: list[Batch],
    relative: float,
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """The sensitivities of all weights, each from the loss with noise on it.

    Every loss needs the whole model: streamed blocks are all in memory meanwhile.
    """
    with ExitStack() as stack:
        if task.streamed is not None:
            stack.enter_context(task.streamed.hold_all())
            for path in task.blocks():
                task.streamed.load(path)
        rises, base = dict[str, float](), _loss(task, batches)
        weights = _weights(task, names)
        for index, (name, weight) in enumerate(weights.items()):
            progress(name, index, len(weights))
            loss = _rise(task, batches, weight, relative, tensor_seed(seed, name))
            rises[name] = (loss - base) / relative
    return rises


@torch.no_grad()
def _rise(
    task: CalibrationTask, data: list[Batch], weight: nn.Parameter, relative: float, seed: int
) -> float:
    """The loss while noise is added to one weight, in proportion to each row's energy."""
    generator = torch.Generator().manual_seed(seed)
    kept = weight.detach().clone()
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    rms = kept.reshape(len(kept), -1).square().mean(1).sqrt().view(-1, *[1] * (kept.ndim - 1))
    weight.copy_(kept + noise * rms * relative**0.5)
    try:
        return _loss(task, data)
    finally:
        weight.copy_(kept)


@torch.no_grad()
def _loss(task: CalibrationTask, data: list[Batch]) -> float:
    return sum(float(task.loss(batch)) for batch in data) / len(data)
