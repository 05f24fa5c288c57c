"""Fidelity to the uncompressed model at the same seeds: PSNR, SSIM, latent error.

The Frechet distance can improve while the images drift away from those of the original model;
these numbers cannot. Each is kept per image. SSIM and latent error are reported as their means.
PSNR is not: it is infinite for an identical pair, and one such pair would hide all others. Reported
is the PSNR of the mean squared error over all pairs, as torchmetrics has it, so it is infinite only
where all pairs are identical. It is never above the mean of the PSNRs, by Jensen's inequality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dpq_core.errors import SpecError
from dpq_core.plugin.adapter import Metric
from dpq_core.run import Progress, silent
from dpq_diffusion.pipelines.conditions import Item
from dpq_diffusion.sampling.images import Images
from dpq_diffusion.sampling.samplers import Sampler

_PEAK = 255.0
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 of Wang et al. 2004, for images in [0, 1]


@dataclass(frozen=True)
class ImageFidelity:
    """How close each image is to its twin.

    Attributes:
        mse: mean squared error of 8-bit levels, float64 ``[N]``; 0 where the images are identical.
        ssim: float64 ``[N]``, at most 1.
    """

    mse: Tensor
    ssim: Tensor

    @property
    def psnr(self) -> float:
        """PSNR of the mean squared error over all pairs, in dB; infinite if all are identical."""
        return _decibels(self.mse.mean()).item()

    def metrics(self) -> tuple[Metric, ...]:
        """PSNR and SSIM over all images, as metrics."""
        pairs = f"{len(self.mse):,} image pairs at the same seeds"
        each = _decibels(self.mse[self.mse > 0])  # [pairs that differ]
        note = f", mean of the {len(each):,} PSNRs {each.mean().item():.2f} dB" if len(each) else ""
        same = f"{len(self.mse) - len(each):,} of them identical"
        return (
            Metric(
                name="PSNR to the uncompressed model",
                value=self.psnr,
                higher_is_better=True,
                protocol=f"dB, of the mean squared 8-bit error over {pairs}, {same}{note}",
            ),
            Metric(
                name="SSIM to the uncompressed model",
                value=self.ssim.mean().item(),
                higher_is_better=True,
                protocol=f"mean over {pairs}, Gaussian window {_WINDOW}, sigma {_SIGMA}",
            ),
        )


def _decibels(error: Tensor) -> Tensor:
    """PSNR of squared errors of 8-bit levels."""
    return 10 * torch.log10(_PEAK**2 / error)


def compare_images(
    images: Images, baseline: Images, *, batch_size: int = 64, progress: Progress = silent
) -> ImageFidelity:
    """Errors and SSIM of image pairs, in order.

    Raises:
        SpecError: different numbers or sizes of images, none at all, or smaller than 6 pixels.
        SourceError: an image cannot be read.
    """
    if len(images) != len(baseline) or images.size != baseline.size:
        raise SpecError(
            f"{images.name} holds {len(images)} images of {_shown(images)} and {baseline.name} "
            f"{len(baseline)} of {_shown(baseline)}; sample both with the same seeds and size"
        )
    if len(images) == 0:
        raise SpecError(f"{images.name}: there are no images to compare")
    errors, ssims, done = [], [], 0
    for mine, original in zip(
        images.batches(batch_size), baseline.batches(batch_size), strict=True
    ):
        errors.append(pixel_mse(mine, original))
        ssims.append(ssim(mine, original))
        done += len(mine)
        progress("PSNR and SSIM", done, len(images))
    return ImageFidelity(torch.cat(errors), torch.cat(ssims))


def _shown(images: Images) -> str:
    return f"{images.size[0]}x{images.size[1]}"


def pixel_mse(images: Tensor, baseline: Tensor) -> Tensor:
    """Mean squared error float64 ``[N]`` of the levels of uint8 images ``[N, H, W, C]``.

    Raises:
        SpecError: the shapes differ or the images are not uint8.
    """
    _check_pair(images, baseline)
    return (images.double() - baseline.double()).square().flatten(1).mean(1)


def psnr(images: Tensor, baseline: Tensor) -> Tensor:
    """Peak signal-to-noise ratio float64 ``[N]`` in dB of uint8 images ``[N, H, W, C]``.

    Infinite where two images are identical.

    Raises:
        SpecError: the shapes differ or the images are not uint8.
    """
    return _decibels(pixel_mse(images, baseline))


def ssim(images: Tensor, baseline: Tensor) -> Tensor:
    """Structural similarity float64 ``[N]`` of uint8 images ``[N, H, W, C]`` (Wang et al. 2004).

    Gaussian window of 11 pixels and sigma 1.5, per channel, borders mirrored, mean over the map
    and the channels: what torchmetrics computes by default.

    Raises:
        SpecError: the shapes differ, not uint8, or the images are smaller than 6 pixels.
    """
    _check_pair(images, baseline)
    if min(images.shape[1:3]) <= _WINDOW // 2:
        raise SpecError(f"SSIM needs images of at least {_WINDOW // 2 + 1} pixels a side")
    x, y = (t.permute(0, 3, 1, 2).double() / _PEAK for t in (images, baseline))
    mean_x, mean_y, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    variance_x = (xx - mean_x.square()).clamp_min(0)
    variance_y = (yy - mean_y.square()).clamp_min(0)
    covariance = xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).flatten(1).mean(1)


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


def _check_pair(images: Tensor, baseline: Tensor) -> None:
    if images.shape != baseline.shape or images.ndim != 4:
        raise SpecError(
            f"images of shape {list(images.shape)} and {list(baseline.shape)} cannot be compared; "
            "expected two equal shapes [N, H, W, C]"
        )
    if images.dtype != torch.uint8 or baseline.dtype != torch.uint8:
        raise SpecError(f"images must be uint8, not {images.dtype} and {baseline.dtype}")


def _blurred(planes: Tensor) -> Tensor:
    """Each plane of ``[5, N, C, H, W]`` under the Gaussian window, same shape, borders mirrored."""
    half = _WINDOW // 2
    offsets = torch.arange(-half, half + 1, dtype=planes.dtype, device=planes.device)
    window = torch.exp(-(offsets / _SIGMA).square() / 2)
    window /= window.sum()
    flat = functional.pad(planes.flatten(0, 1), (half, half, half, half), mode="reflect")
    single = flat.flatten(0, 1).unsqueeze(1)  # [5 N C, 1, H + 10, W + 10]
    across = functional.conv2d(single, window.view(1, 1, 1, -1))
    return functional.conv2d(across, window.view(1, 1, -1, 1)).view(planes.shape)


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
