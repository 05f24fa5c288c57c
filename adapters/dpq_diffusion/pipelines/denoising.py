"""The reverse process, from noise to latents and images, reproducible image by image.

Written out here because ``DiTPipeline`` of diffusers takes 1000 for the null class of every model,
drops the learned variance and needs an autoencoder. Latents stay float32 whatever the dtype of the
model, so that a compressed model and its original differ by the model's output alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpq_core.errors import SourceError
from dpq_diffusion.pipelines.schedulers import uses_variance

Trace = Callable[[int, Tensor], None]
"""A function called after every step, with its number from 0 and the latents ``[n, C, H, W]``."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""A function from latents ``[n, C, H, W]`` and a timestep to outputs ``[n, C or 2C, H, W]``."""

Conditioning = Callable[[Tensor], Mapping[str, Tensor]]
"""A function from classes int64 ``[n]`` to the arguments that tell the model of them."""


def label_arguments(labels: Tensor) -> Mapping[str, Tensor]:
    """The arguments that tell DiT and ``UNet2DModel`` of classes: their numbers."""
    return {"class_labels": labels}


def no_trace(step: int, latents: Tensor) -> None:
    """A trace that does nothing."""


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per image, on the CPU, so that no batch and no device changes an image."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def initial_noise(
    shape: tuple[int, ...], sources: Sequence[torch.Generator], device: torch.device
) -> Tensor:
    """Standard normal noise float32 ``[n, *shape]``, each image from its own generator."""
    return torch.stack([torch.randn(shape, generator=source) for source in sources]).to(device)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598): its scale, and what it applies to.

    Attributes:
        scale: 1 is none.
        channels: number of channels of the prediction that are guided; 0: all.
        null: label that stands for "no class".
    """

    scale: float
    channels: int = 0
    null: int | None = None

    @property
    def active(self) -> bool:
        """Whether the model runs on the null class as well."""
        return self.scale != 1 and self.null is not None

    def combine(self, output: Tensor, channels: int) -> Tensor:
        """The guided output ``[n, C', H, W]`` of an output ``[2n, C', H, W]``, with class first.

        What follows the first ``channels`` is the predicted variance and comes from the half with
        class, as do channels that are not guided.
        """
        conditional, unconditional = output.chunk(2)
        guided = min(self.channels or channels, channels)
        with_class, without = conditional[:, :guided], unconditional[:, :guided]
        return torch.cat(
            [without + self.scale * (with_class - without), conditional[:, guided:]], dim=1
        )


def class_predictor(
    model: Any,
    labels: Tensor | None,
    guidance: Guidance,
    *,
    variance: bool,
    condition: Conditioning = label_arguments,
) -> Predict:
    """A function that gives the model's guided prediction for latents and a timestep.

    Args:
        model: called as ``model(latents, timesteps, **condition(labels))``.
        labels: int64 ``[n]`` on the model's device; None: unconditional.
        guidance: classifier-free guidance and its channels.
        variance: keep the predicted variance behind the noise.
        condition: makes the model's arguments for classes.
    """
    classes = labels
    if guidance.active and labels is not None:
        classes = torch.cat([labels, torch.full_like(labels, guidance.null or 0)])
    dtype = activation_dtype(model)
    extra: dict[str, Tensor] = {}
    if classes is not None:
        with torch.no_grad():
            arguments = condition(classes)
        extra = {k: v.to(dtype) if v.is_floating_point() else v for k, v in arguments.items()}

    def predict(latents: Tensor, step: Tensor) -> Tensor:
        channels = latents.shape[1]
        batch = torch.cat([latents, latents]) if guidance.active else latents
        steps = step.to(batch.device).expand(len(batch))
        output: Tensor = model(batch.to(dtype), steps, **extra).sample.float()
        if guidance.active:
            output = guidance.combine(output, channels)
        return output if variance else output[:, :channels]

    return predict


def activation_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of a model's dense parameters, in which it computes."""
    from dpq_core.runtime.weight import PQWeight

    for module in model.modules():
        if not isinstance(module, PQWeight):
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    return parameter.dtype
    return torch.float32


@torch.no_grad()
def reverse_process(
    predict: Predict,
    noise: Tensor,
    scheduler: Any,
    steps: int,
    sources: list[torch.Generator] | torch.Generator | None,
    trace: Trace = no_trace,
) -> Tensor:
    """Run the reverse process from noise to latents.

    Args:
        predict: the model's prediction for latents at a timestep.
        noise: float32 ``[n, C, H, W]``, standard normal.
        scheduler: a scheduler of diffusers; its history is cleared.
        steps: denoising steps.
        sources: generators of the noise of stochastic samplers, one per image as a rule.
        trace: sees the latents of every step.

    Returns:
        Latents float32 ``[n, C, H, W]``.

    Raises:
        SourceError: the model gives NaN or infinity.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    takes = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": sources} if "generator" in takes else {}
    latents: Tensor = noise * scheduler.init_noise_sigma
    for number, step in enumerate(scheduler.timesteps):
        output = predict(scheduler.scale_model_input(latents, step), step)
        latents = scheduler.step(output, step, latents, **extra).prev_sample
        if not bool(latents.isfinite().all()):
            raise SourceError(
                f"the model gives NaN or infinity at step {number + 1} of {steps}; its weights are "
                "damaged, or its dtype overflows"
            )
        trace(number, latents)
    return latents


def keeps_variance(scheduler: Any, model: Any) -> bool:
    """Whether the scheduler is to see the variance that the model predicts."""
    return predicts_variance(model) and uses_variance(scheduler)


def predicts_variance(model: Any) -> bool:
    """Whether the model has twice as many output channels as input channels."""
    outputs, inputs = model.config.get("out_channels"), model.config.get("in_channels")
    return outputs is not None and outputs == 2 * inputs


@torch.no_grad()
def decode(latents: Tensor, vae: Any) -> Tensor:
    """Decode latents ``[n, C, H, W]`` to uint8 images ``[n, H, W, C]`` on the CPU.

    Args:
        latents: float32; pixels in [-1, 1] where there is no autoencoder.
        vae: autoencoder of the pipeline, or None.

    Raises:
        SourceError: the autoencoder gives NaN or infinity.
    """
    if vae is not None:
        shift = vae.config.get("shift_factor") or 0.0
        scaled = latents / vae.config.get("scaling_factor", 1.0) + shift
        latents = vae.decode(scaled.to(activation_dtype(vae))).sample
    return to_uint8(latents.float())


def to_uint8(pixels: Tensor) -> Tensor:
    """Round pixels ``[n, C, H, W]`` in [-1, 1] to uint8 ``[n, H, W, C]`` on the CPU.

    Raises:
        SourceError: NaN or infinity among them.
    """
    if not bool(pixels.isfinite().all()):
        raise SourceError("the decoded images hold NaN or infinity; the weights are damaged")
    levels = (pixels.clamp(-1, 1) * 127.5 + 127.5).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
