"""Two models side by side: the same seeds, the same settings, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.plugin.adapter import Metric
from dpq_core.run import Progress
from dpq_diffusion.conditions import Item
from dpq_diffusion.metrics import ImageFidelity, latent_mse, pixel_mse, ssim
from dpq_diffusion.samplers import Sampler


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far a model is from the uncompressed one.

    Attributes:
        images: pixel error and SSIM per image.
        latents: mean squared error of the latents per image and step, float64 ``[N, steps]``;
            None for pipelines that do not show them.
    """

    images: ImageFidelity
    latents: Tensor | None

    def metrics(self) -> tuple[Metric, ...]:
        """PSNR, SSIM and latent error over all images."""
        found = self.images.metrics()
        if self.latents is None:
            return found
        count, steps = self.latents.shape
        latent = Metric(
            name="latent MSE to the uncompressed model",
            value=self.latents.mean().item(),
            higher_is_better=False,
            protocol=f"mean over {count:,} image pairs at the same seeds and {steps} steps each",
        )
        return (*found, latent)


def compare(
    sampler: Sampler, original: Sampler, items: Sequence[Item], size: int, progress: Progress
) -> Comparison:
    """Draw the same images with both models, ``size`` at a time.

    Raises:
        SourceError: one of them gives NaN.
        SpecError: the images differ in size.
    """
    pixels, ssims, errors = [], [], []
    for first in range(0, len(items), size):
        progress("comparing with the uncompressed model", first, len(items))
        batch = items[first : first + size]
        images, latents = _traced(sampler, batch)
        theirs, their_latents = _traced(original, batch)
        pixels.append(pixel_mse(images, theirs))
        ssims.append(ssim(images, theirs))
        if latents:
            pairs = zip(latents, their_latents, strict=True)
            errors.append(torch.stack([latent_mse(a, b) for a, b in pairs], dim=1))
    progress("comparing with the uncompressed model", len(items), len(items))
    return Comparison(
        images=ImageFidelity(torch.cat(pixels), torch.cat(ssims)),
        latents=torch.cat(errors) if errors else None,
    )


def _traced(sampler: Sampler, items: Sequence[Item]) -> tuple[Tensor, list[Tensor]]:
    """Images uint8 ``[n, H, W, C]``, and the latents ``[n, ...]`` of every step, on the CPU."""
    latents: list[Tensor] = []
    images = sampler.draw(items, lambda step, values: latents.append(values.detach().cpu()))
    return images, latents
