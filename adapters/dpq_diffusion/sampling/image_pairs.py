"""Two sets of images compared pair by pair: PSNR and SSIM to those of the uncompressed model.

The reported PSNR is that of the mean squared error over all pairs, as torchmetrics has it, so it is
infinite only where all pairs are identical. It is never above the mean of the PSNRs, by Jensen's
inequality.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_core.plugin.image_metrics import (
    SSIM_PROTOCOL,
    decibels,
    mean_psnr,
    mean_squared_error,
    ssim,
)
from dpq_core.plugin.results import Metric
from dpq_core.run import Progress, silent
from dpq_diffusion.sampling.images import Images

_PEAK = 255.0  # 8-bit levels


@dataclass(frozen=True)
class ImageFidelity:
    """Errors of images against the uncompressed model's images at the same seeds.

    Attributes:
        mse: mean squared error of 8-bit levels, float64 ``[N]``; 0 where the images are identical.
        ssim: float64 ``[N]``, at most 1.
    """

    mse: Tensor
    ssim: Tensor

    @property
    def psnr(self) -> float:
        """PSNR of the mean squared error over all pairs, in dB; infinite if all are identical."""
        return decibels(self.mse.mean(), _PEAK).item()

    def metrics(self) -> tuple[Metric, ...]:
        """PSNR and SSIM over all images, with the number of identical pairs in the protocol."""
        pairs = f"{len(self.mse):,} image pairs at the same seeds"
        mean, identical = mean_psnr(decibels(self.mse, _PEAK))
        different = len(self.mse) - identical
        note = f", mean of the {different:,} PSNRs {mean:.2f} dB" if different else ""
        same = f"{identical:,} of them identical"
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
                protocol=f"mean over {pairs}, {SSIM_PROTOCOL}",
            ),
        )


def compare_images(
    images: Images, baseline: Images, *, batch_size: int = 64, progress: Progress = silent
) -> ImageFidelity:
    """Squared error and SSIM of each pair of two sets of images, in their order.

    Raises:
        SpecError: different numbers or sizes of images, none at all, or smaller than 6 pixels.
        SourceError: an image cannot be read.
    """
    if len(images) != len(baseline) or images.size != baseline.size:
        raise SpecError(
            f"{images.name} holds {len(images)} images of {_size_of(images)} and {baseline.name} "
            f"{len(baseline)} of {_size_of(baseline)}; sample both with the same seeds and size"
        )
    if len(images) == 0:
        raise SpecError(f"{images.name}: there are no images to compare")
    errors, ssims, done = [], [], 0
    for batch, baseline_batch in zip(
        images.batches(batch_size), baseline.batches(batch_size), strict=True
    ):
        errors.append(mean_squared_error(batch, baseline_batch))
        ssims.append(ssim(batch, baseline_batch))
        done += len(batch)
        progress("PSNR and SSIM", done, len(images))
    return ImageFidelity(torch.cat(errors), torch.cat(ssims))


def _size_of(images: Images) -> str:
    return f"{images.size[0]}x{images.size[1]}"
