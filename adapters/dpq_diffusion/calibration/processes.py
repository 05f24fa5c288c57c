"""Noise processes: how noise is added to clean data, and the training loss of a denoiser."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpq_core.errors import Hint, SpecError
from dpq_diffusion.pipelines.schedulers import LEARNED


class NoiseProcess(ABC):
    """A process that adds noise to data, with the training loss of its denoiser.

    Attributes:
        name: name of its training loss, as ``--loss`` takes it.
    """

    name: str

    @abstractmethod
    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Random noise levels ``[count]`` as training has them."""

    @abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The data with noise of the given levels added ``[n, ...]``."""

    @abstractmethod
    def timesteps(self, levels: Tensor) -> Tensor:
        """The scheduler's timesteps ``[n]`` of noise levels ``[n]``."""

    @abstractmethod
    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Training loss, a scalar.

        Args:
            output: float32, of the denoiser.
            batch: ``clean``, ``noise``, ``noisy`` ``[n, ...]`` and ``level`` ``[n]``.
        """


def noise_process(scheduler: Any) -> NoiseProcess:
    """The noise process that a scheduler of diffusers reverses.

    Raises:
        SpecError: it is of another kind.
    """
    config = scheduler.config
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if flow or type(scheduler).__name__.startswith("FlowMatch"):
        return Flow(config.num_train_timesteps)
    if hasattr(scheduler, "alphas_cumprod"):
        return Diffusion(
            scheduler.alphas_cumprod,
            config.get("prediction_type") or "epsilon",
            direct=config.get("variance_type") == LEARNED[0],
        )
    raise SpecError(
        f"calibrate: the process of a {type(scheduler).__name__} is not known here, only its own "
        "trajectories can be trained on",
        Hint.of("give {} without images or latents", loss="distill"),
    )


class Flow(NoiseProcess):
    """Rectified flow (arXiv 2209.03003): noisy = (1 - s) clean + s noise, target noise - clean."""

    name = "flow"

    def __init__(self, steps: int) -> None:
        """Take the number of training timesteps, which is that of s = 1."""
        self._steps = steps

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Logit-normal s in (0, 1), float32, as SD3 and its successors train (2403.03206)."""
        return torch.randn(count, generator=generator).sigmoid()

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Points ``[n, ...]`` on the straight line from data to noise."""
        return torch.lerp(clean, noise, _broadcast(levels, clean))

    def timesteps(self, levels: Tensor) -> Tensor:
        """Timesteps float32 ``[n]``, from 0 to the number of training steps."""
        return levels * self._steps

    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Squared error of the velocity."""
        return functional.mse_loss(output, batch["noise"] - batch["clean"])


class Diffusion(NoiseProcess):
    """The process of DDPM (arXiv 2006.11239): squared error, and a bound for a learned variance.

    The bound trains the variance alone, as in improved DDPM (arXiv 2102.09672, eq. 15-16) and DiT.
    """

    name = "ddpm"

    def __init__(self, alphas_cumprod: Tensor, prediction: str, *, direct: bool = False) -> None:
        """Derive the coefficients of all timesteps.

        Args:
            alphas_cumprod: ``[T]``.
            prediction: ``epsilon``, ``v_prediction`` or ``sample``.
            direct: the model gives the logarithm of the variance, not its place between the bounds.

        Raises:
            SpecError: an unknown prediction.
        """
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise SpecError(
                f"calibrate: prediction_type {prediction!r} of the scheduler is unknown"
            )
        self._prediction, self._direct = prediction, direct
        bar = alphas_cumprod.double()
        before = torch.cat([torch.ones(1, dtype=bar.dtype, device=bar.device), bar[:-1]])
        betas = 1 - bar / before
        posterior = betas * (1 - before) / (1 - bar)
        posterior[0] = posterior[min(1, len(posterior) - 1)]  # it is 0, whose logarithm is needed
        self._signal, self._noise = bar.sqrt(), (1 - bar).sqrt()
        self._low, self._high = posterior.log(), betas.log()
        self._from_clean = betas * before.sqrt() / (1 - bar)
        self._from_noisy = (1 - before) * (1 - betas).sqrt() / (1 - bar)

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform random timesteps int64 ``[count]``."""
        return torch.randint(len(self._signal), (count,), generator=generator)

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Draws of q(x_t | x_0) (arXiv 2006.11239, eq. 4), ``[n, ...]``."""
        signal, amount = self._rows(levels, clean, self._signal, self._noise)
        return signal * clean + amount * noise

    def timesteps(self, levels: Tensor) -> Tensor:
        """The levels themselves, which are timesteps."""
        return levels

    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Squared error, plus the bound in bits per dimension where there is a variance."""
        clean, noise, levels = batch["clean"], batch["noise"], batch["level"]
        channels = clean.shape[1]
        mean, variance = output[:, :channels], output[:, channels:]
        signal, amount = self._rows(levels, clean, self._signal, self._noise)
        targets = {
            "epsilon": noise,
            "v_prediction": signal * noise - amount * clean,
            "sample": clean,
        }
        error = functional.mse_loss(mean, targets[self._prediction])
        if output.shape[1] != 2 * channels:
            return error
        return error + self._bound(mean.detach(), variance, batch)

    def _bound(self, mean: Tensor, variance: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """KL of q(x_{t-1} | x_t, x_0) to the model's step; at t = 0 the data's likelihood."""
        clean, noisy, levels = batch["clean"], batch["noisy"], batch["level"]
        tables = (self._from_clean, self._from_noisy, self._low, self._high)
        from_clean, from_noisy, low, high = self._rows(levels, clean, *tables)
        log_variance = variance if self._direct else low + (variance + 1) / 2 * (high - low)
        predicted_clean = self._predicted_clean(mean, noisy, levels)
        model_mean = from_clean * predicted_clean + from_noisy * noisy
        true_mean = from_clean * clean + from_noisy * noisy
        gap = (true_mean - model_mean).square() * (-log_variance).exp()
        kl = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + gap)
        first = -_log_likelihood(clean, model_mean, 0.5 * log_variance)
        return torch.where(_broadcast(levels, clean) == 0, first, kl).mean() / math.log(2)

    def _predicted_clean(self, mean: Tensor, noisy: Tensor, levels: Tensor) -> Tensor:
        """The clean data that a prediction stands for."""
        signal, amount = self._rows(levels, noisy, self._signal, self._noise)
        if self._prediction == "epsilon":
            return (noisy - amount * mean) / signal
        if self._prediction == "v_prediction":
            return signal * noisy - amount * mean
        return mean

    def _rows(self, levels: Tensor, like: Tensor, *tables: Tensor) -> list[Tensor]:
        """Rows of tables, of the dtype and on the device of ``like``, ready to be broadcast."""
        return [_broadcast(t.to(levels.device)[levels].to(like), like) for t in tables]


def _broadcast(values: Tensor, data: Tensor) -> Tensor:
    """Reshape values ``[n]`` to ``[n, 1, ...]``, with as many axes as the data."""
    return values.view(-1, *[1] * (data.ndim - 1))


def _log_likelihood(clean: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Log-likelihood of 8-bit data in [-1, 1] under discretised Gaussians (2006.11239, eq. 13)."""
    inverse = (-log_scales).exp()
    upper = torch.special.ndtr(inverse * (clean - means + 1 / 255))
    lower = torch.special.ndtr(inverse * (clean - means - 1 / 255))
    inside = torch.where(clean > 0.999, 1 - lower, upper - lower)
    return torch.where(clean < -0.999, upper, inside).clamp(min=1e-12).log()
