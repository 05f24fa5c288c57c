"""Newton steps of the dense weights along the loss gradient: targets of the E-step ``pv``.

PV-Tuning (arXiv 2405.14852) moves a dense buffer along the gradient and encodes anew what moved
most (docs/algorithms.md#pv). Here the step is a Newton step in the metric of the layer inputs: with
the gradient G of the loss by the dense weight and H = E[x x^T], the loss near What is about
``<G, D> + tr(D H D^T) / (2 eta)``, whose minimum is ``What - eta G H^-1``. The curvature 1 / eta of
each layer is measured by a second gradient a little way along that direction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.layers import QuantizedLayer
from dpq_core.calibrate.moments import Moments
from dpq_core.data.task import Batch
from dpq_core.kernels.cpu.threads import one_torch_thread
from dpq_core.methods.assignment.hessian import Hessian, cholesky
from dpq_core.runtime.swap import PQModule, set_module, swap_out

REACH = 0.01
"""Length of the step to the second gradient, relative to the weight."""

DAMPING = 0.1
"""Damping of H, in units of its mean diagonal: gradients are noisy where inputs hardly vary."""

Shares = Sequence[tuple[Batch, float]]
"""Batches of this process, each with its share of all samples."""


def newton_steps(
    student: nn.Module,
    layers: Sequence[QuantizedLayer],
    moments: Moments,
    loss: Callable[[Batch], Tensor],
    batches: Shares,
    workers: Workers,
) -> dict[str, Tensor]:
    """The change of each dense weight that minimises the loss on some batches, by path.

    It is the step for all weights at once. Codes change a few at a time and may go further, since
    other layers do not move with them.

    Args:
        student: holds the layers; it is unchanged afterwards.
        layers: layers of the weights.
        moments: moments of the layers' inputs.
        loss: loss of the student.
        batches: batches of this process.
        workers: processes over which gradients are summed.
    """
    with dense(student, layers) as weights:
        first = _gradients(weights, loss, batches, workers)
        directions = {layer.path: _direction(layer, first[layer.path], moments) for layer in layers}
        with torch.no_grad():
            start = {path: weight.detach().clone() for path, weight in weights.items()}
            reach = {
                p: REACH * start[p].norm() / d.norm().clamp(min=1e-30)
                for p, d in directions.items()
            }
            for path, weight in weights.items():
                weight.sub_(reach[path] * directions[path])
        second = _gradients(weights, loss, batches, workers)
    steps = {}
    for path, direction in directions.items():
        slope = (first[path] * direction).sum()
        fallen = ((first[path] - second[path]) * direction).sum()
        # Where the slope does not fall there is no minimum near by: go as far as was measured.
        length = torch.where(fallen > 0, reach[path] * slope / fallen.clamp(min=1e-30), reach[path])
        steps[path] = -length * direction
    return steps


def _direction(layer: QuantizedLayer, gradient: Tensor, moments: Moments) -> Tensor:
    """G H^-1, by rows of the matrix view; an embedding's rows have a count for H."""
    p, seen = layer.weight.partition, moments.of(layer.path)
    matrix = p.to_matrix(gradient).float()
    if seen is None:
        return torch.zeros_like(gradient)
    if seen.rows is not None:
        share = (seen.rows / seen.count.clamp(min=1e-30)).to(matrix)
        return p.from_matrix(matrix / share.clamp(min=float(share.mean()) * DAMPING)[:, None])
    metric = Hessian.of(seen.hessian(p.cols, matrix.device), width=1, damping=DAMPING)
    gradients = matrix.T.double()[metric.columns]
    factor = cholesky(metric.matrix)
    with one_torch_thread():  # as the factor: the same bytes for any number of threads
        gradients[metric.columns] = torch.cholesky_solve(gradients, factor) / metric.scale
    return p.from_matrix(gradients.T.float())


def _gradients(
    weights: dict[str, nn.Parameter],
    loss: Callable[[Batch], Tensor],
    batches: Shares,
    workers: Workers,
) -> dict[str, Tensor]:
    """Mean gradient of the loss over batches and processes, by path; zero where there is none."""
    for weight in weights.values():
        weight.grad = None
    for batch, share in batches:
        with torch.enable_grad():
            (loss(batch) * (share / len(batches))).backward()  # type: ignore[no-untyped-call]
    workers.sum_gradients(weights.values())
    return {
        path: torch.zeros_like(w) if w.grad is None else w.grad.detach().clone()
        for path, w in weights.items()
    }


@contextlib.contextmanager
def dense(
    student: nn.Module, layers: Sequence[QuantizedLayer]
) -> Iterator[dict[str, nn.Parameter]]:
    """Within the ``with`` block, the student has dense weights, some with gradients.

    Yields:
        Path of a layer -> its weight, float32.
    """
    quantized = {
        path: module
        for path, module in student.named_modules(remove_duplicate=False)
        if isinstance(module, PQModule)
    }
    trained = [p for p in student.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    swap_out(student, torch.float32)
    try:
        weights = {layer.path: student.get_parameter(f"{layer.path}.weight") for layer in layers}
        for weight in weights.values():
            weight.requires_grad_(True)
        yield weights
    finally:
        for path, module in quantized.items():
            set_module(student, path, module)
        for parameter in trained:
            parameter.requires_grad_(True)
