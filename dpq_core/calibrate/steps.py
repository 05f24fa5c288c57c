"""The M-step: AdamW on codebooks, pools, scales and small parameters, codes fixed."""

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
        parameters: name in the student -> what is trained.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        scales: Mapping[str, float],
        settings: CalibrateSettings,
        workers: Workers,
        *,
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """One parameter group per parameter.

        Args:
            parameters: name -> trained parameter.
            scales: name -> factor of the learning rate, 1 where it is missing.
            settings: learning rate, betas and clipping.
            workers: over which gradients are summed.
            own: name -> options of AdamW in place of those of the settings, as of ``own_options``.
        """
        self.parameters = dict(parameters)
        self._settings, self._workers = settings, workers
        groups = [
            {"params": [p], "lr": settings.lr, "scale": scales.get(name, 1.0)}
            | dict((own or {}).get(name, {}))
            for name, p in self.parameters.items()
        ]
        self._adam = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, weight_decay=0)

    def step(
        self, loss: Callable[[Batch], Tensor], batch: Batch, share: float, factor: float
    ) -> float:
        """One update.

        Args:
            loss: of this process's samples, a mean.
            batch: this process's samples.
            share: of all samples that these are.
            factor: of the learning rate.

        Returns:
            The loss on this process's samples.

        Raises:
            SpecError: loss or gradient are not finite; the student is as it was.
        """
        self._adam.zero_grad(set_to_none=True)
        found = loss(batch)
        (found * share).backward()  # type: ignore[no-untyped-call]
        value = float(found.detach())
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
        """Scale the gradient down to the largest norm that is allowed; returns what it was."""
        limit = self._settings.clip or math.inf
        return float(nn.utils.clip_grad_norm_(self.parameters.values(), limit))

    def forget(self, name: str, rows: Tensor) -> None:
        """Zero the moments of some vectors of a codebook or pool that were given new values.

        Args:
            name: of the parameter, ``[..., d]``.
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
            mine = value.cpu() if moment == "step" else value
            self._adam.state[self.parameters[name]][moment] = mine


def rates(
    parameters: Mapping[str, nn.Parameter],
    layers: Sequence[QuantizedLayer],
    groups: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Factor of the learning rate of every trained parameter (docs/algorithms.md#m-step).

    Codebooks, pools and scales move in proportion to their RMS; all others as AdamW has it. A
    task's ``lr_scale`` multiplies either.
    """
    own = {id(p) for layer in layers for p in layer.weight.parameters()}
    given = {id(p): float(g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}
    result = {}
    for name, parameter in parameters.items():
        rms = float(parameter.detach().float().square().mean().sqrt())
        relative = rms / TYPICAL_RMS if id(parameter) in own and rms > 0 else 1.0
        result[name] = relative * given.get(id(parameter), 1.0)
    return result


OWN_OPTIONS = ("betas", "eps")
"""Of AdamW, that a task may choose: how noisy its gradients are, and how small."""


def own_options(
    parameters: Mapping[str, nn.Parameter], groups: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Options of AdamW by the name of a parameter, where its task chooses them."""
    given = {
        id(p): {name: g[name] for name in OWN_OPTIONS if name in g}
        for g in groups
        for p in g["params"]
    }
    return {name: given.get(id(p), {}) for name, p in parameters.items()}


@contextlib.contextmanager
def recomputing(layers: Sequence[QuantizedLayer], always: bool | None) -> Iterator[None]:
    """Within: dense weights are not kept for the backward pass but decoded again.

    See docs/algorithms.md#recompute.

    Args:
        layers: whose modules are meant.
        always: None decides by the size of the dense weights.
    """
    dense = sum(4 * layer.weight.shape.numel() for layer in layers)
    wanted = dense > RECOMPUTE_BYTES if always is None else always
    changed = [layer.module for layer in layers] if wanted else []
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
