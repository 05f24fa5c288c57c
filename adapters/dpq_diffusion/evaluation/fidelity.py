"""Fidelity to the uncompressed model at the same seeds: PSNR, SSIM and the error of the latents.

The Frechet distance can improve while the images drift away from those of the original model;
these numbers cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.plugin.image_metrics import mean_squared_error, ssim
from dpq_core.plugin.results import Metric
from dpq_core.run import Progress
from dpq_diffusion.pipelines.conditions import Item
from dpq_diffusion.sampling.image_pairs import ImageFidelity
from dpq_diffusion.sampling.samplers import Sampler


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Errors of a model's images and latents against those of the uncompressed model.

    Attributes:
        images: pixel error and SSIM per image.
        latents: mean squared error of the latents per image and step, float64 ``[N, steps]``;
            None for pipelines that do not show them.
    """

    images: ImageFidelity
    latents: Tensor | None

    def metrics(self) -> tuple[Metric, ...]:
        """PSNR, SSIM and latent error over all images."""
        image_metrics = self.images.metrics()
        if self.latents is None:
            return image_metrics
        count, steps = self.latents.shape
        latent = Metric(
            name="latent MSE to the uncompressed model",
            value=self.latents.mean().item(),
            higher_is_better=False,
            protocol=f"mean over {count:,} image pairs at the same seeds and {steps} steps each",
        )
        return (*image_metrics, latent)


def compare(
    sampler: Sampler, baseline: Sampler, items: Sequence[Item], size: int, progress: Progress
) -> Comparison:
    """Draw the same images with a model and the uncompressed one, ``size`` at a time, and compare.

    Raises:
        SourceError: one of them gives NaN.
        SpecError: the images differ in size.
    """
    pixels, ssims, errors = [], [], []
    for first in range(0, len(items), size):
        progress("comparing with the uncompressed model", first, len(items))
        batch = items[first : first + size]
        images, latents = _traced(sampler, batch)
        baseline_images, baseline_latents = _traced(baseline, batch)
        pixels.append(mean_squared_error(images, baseline_images))
        ssims.append(ssim(images, baseline_images))
        if latents:
            pairs = zip(latents, baseline_latents, strict=True)
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


def latent_mse(latents: Tensor, baseline: Tensor) -> Tensor:
    """Mean squared error float64 ``[N]`` of latents ``[N, ...]``, one value per image.

    For the latents of every denoising step, call it step by step, or with the steps folded into
    the first dimension.

    Raises:
        SpecError: the shapes differ, or a latent holds NaN or infinity.
    """
    if latents.shape != baseline.shape or latents.ndim < 2:
        raise SpecError(
            f"latents of shape {list(latents.shape)} and {list(baseline.shape)} cannot be compared"
        )
    for name, values in (("latent", latents), ("latent of the uncompressed model", baseline)):
        broken = ~values.isfinite().flatten(1).all(1)
        if broken.any():
            first = int(broken.nonzero()[0])
            raise SpecError(f"{name} {first} holds NaN or infinity (one of {int(broken.sum())})")
    return (latents.double() - baseline.double()).square().flatten(1).mean(1)
