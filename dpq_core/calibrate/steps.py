"""The M-step: AdamW on codebooks, pools, scales and small parameters while codes stay fixed."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpq_core.calibrate.distributed import Workers
from dpq_core.calibrate.layers import QuantizedLayer
from dpq_core.calibrate.settings import CalibrateSettings
from dpq_core.data.task import Batch
from dpq_core.errors import ANY, Hint, SpecError

TYPICAL_RMS = 0.05
"""RMS of a weight for which the learning rate is meant as it is (docs/algorithms.md#m-step)."""

RECOMPUTE_BYTES = 1 << 30
"""Dense float32 weights beyond this are decoded again in the backward pass."""


class MStep:
    """The optimizer of one phase.

    Attributes:
        parameters: name in the student -> trained parameter.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        scales: Mapping[str, float],
        settings: CalibrateSettings,
        workers: Workers,
        *,
        adamw: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Set up AdamW with one parameter group per parameter.

        Args:
            parameters: name -> trained parameter.
            scales: name -> factor of the learning rate, 1 where it is missing.
            settings: learning rate, betas and clipping.
            workers: processes over which gradients are summed.
            adamw: name -> options of AdamW that replace those of the settings, as
                ``adamw_options`` gives them.
        """
        self.parameters = dict(parameters)
        self._settings, self._workers = settings, workers
        groups = [
            {"params": [p], "lr": settings.lr, "scale": scales.get(name, 1.0)}
            | dict((adamw or {}).get(name, {}))
            for name, p in self.parameters.items()
        ]
        self._adam = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, weight_decay=0)

    def step(
        self, loss: Callable[[Batch], Tensor], batch: Batch, share: float, factor: float
    ) -> float:
        """Make one update.

        Args:
            loss: mean loss of this process's samples.
            batch: this process's samples.
            share: share of these among the samples of all processes.
            factor: factor of the learning rate.

        Returns:
            The loss on this process's samples.

        Raises:
            SpecError: loss or gradient are not finite; the student is unchanged.
        """
        self._adam.zero_grad(set_to_none=True)
        mean_loss = loss(batch)
        (mean_loss * share).backward()  # type: ignore[no-untyped-call]
        value = float(mean_loss.detach())
        self._workers.sum_gradients(self.parameters.values())
        norm = self._clip()
        if not (math.isfinite(value) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(value) else "gradient"
            raise SpecError(
                f"calibrate: the {what} is not finite at a learning rate of {self._settings.lr:g}",
                Hint.of("lower {} or look for damaged values in the data", lr=ANY),
            )
        for group in self._adam.param_groups:
            group["lr"] = self._settings.lr * group["scale"] * factor
        self._adam.step()
        return value

    def _clip(self) -> float:
        """Scale the gradient down to the largest allowed norm; returns its norm before."""
        limit = self._settings.clip or math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters.values(), limit))

    def forget(self, name: str, rows: Tensor) -> None:
        """Zero AdamW's moments of vectors of a codebook or pool that were replaced.

        Args:
            name: name of the parameter, ``[..., d]``.
            rows: int64 indices into its vectors, the leading axes flattened.
        """
        parameter = self.parameters.get(name)
        if parameter is None:
            return
        for key, value in self._adam.state.get(parameter, {}).items():
            if key != "step":
                value.view(-1, value.shape[-1])[rows] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The moments and step counts, by parameter."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._adam.state.get(parameter, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        for key, value in tensors.items():
            name, _, moment = key.rpartition("/")
            # AdamW counts steps on the CPU, whatever the parameter's device.
            placed = value.cpu() if moment == "step" else value
            self._adam.state[self.parameters[name]][moment] = placed


def rates(
    parameters: Mapping[str, nn.Parameter],
    layers: Sequence[QuantizedLayer],
    groups: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Factor of the learning rate of every trained parameter (docs/algorithms.md#m-step).

    The rates of codebooks, pools and scales are in proportion to their RMS; all others are AdamW's.
    A task's ``lr_scale`` multiplies either.
    """
    quantized = {id(p) for layer in layers for p in layer.weight.parameters()}
    scales = {id(p): float(g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}
    result = {}
    for name, parameter in parameters.items():
        rms = float(parameter.detach().float().square().mean().sqrt())
        relative = rms / TYPICAL_RMS if id(parameter) in quantized and rms > 0 else 1.0
        result[name] = relative * scales.get(id(parameter), 1.0)
    return result


ADAMW_OPTIONS = ("betas", "eps")
"""Options of AdamW that a task may choose, to suit the noise and the size of its gradients."""


def adamw_options(
    parameters: Mapping[str, nn.Parameter], groups: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The options of AdamW that a task chooses, by the name of the parameter."""
    chosen = {
        id(p): {name: g[name] for name in ADAMW_OPTIONS if name in g}
        for g in groups
        for p in g["params"]
    }
    return {name: chosen.get(id(p), {}) for name, p in parameters.items()}


@contextlib.contextmanager
def recomputing(layers: Sequence[QuantizedLayer], always: bool | None) -> Iterator[None]:
    """Within the ``with`` block, the backward pass decodes dense weights again.

    They are not kept from the forward pass. See docs/algorithms.md#recompute.

    Args:
        layers: layers to which this applies.
        always: whether to do so; None decides by the size of the dense weights.
    """
    dense = sum(4 * layer.weight.shape.numel() for layer in layers)
    active = dense > RECOMPUTE_BYTES if always is None else always
    changed = [layer.module for layer in layers] if active else []
    for module in changed:
        again = functools.partial(
            checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
        )
        module.forward = again
    try:
        yield
    finally:
        for module in changed:
            del module.forward
