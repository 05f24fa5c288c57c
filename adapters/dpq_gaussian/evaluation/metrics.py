"""Metrics of one view against a picture of it: PSNR, SSIM and, with weights, LPIPS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dpq_core.plugin import image_metrics

if TYPE_CHECKING:
    from dpq_gaussian.evaluation.lpips import LPIPS


def psnr(picture: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures ``[H, W, 3]`` in [0, 1]; infinite if identical.

    Raises:
        SpecError: the shapes differ.
    """
    return image_metrics.psnr(picture[None], reference[None]).item()


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Structural similarity of pictures ``[H, W, 3]`` in [0, 1] (`image_metrics.ssim`).

    Raises:
        SpecError: the shapes differ, or the pictures are smaller than 6 x 6 pixels.
    """
    return image_metrics.ssim(picture[None], reference[None]).item()


def score(picture: Tensor, reference: Tensor, lpips: LPIPS | None = None) -> dict[str, float]:
    """All metrics of one view; both pictures are clamped to [0, 1] and not rounded to 8 bits."""
    pair = picture.clamp(0, 1), reference.clamp(0, 1)
    metrics = {"PSNR": psnr(*pair), "SSIM": ssim(*pair)}
    if lpips is not None:
        metrics["LPIPS"] = lpips(*pair)
    return metrics
