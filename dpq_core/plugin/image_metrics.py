"""Metrics of images for every adapter: mean squared error, PSNR and SSIM of pairs.

One convention for PSNR holds everywhere: that of an identical pair is infinite, a mean leaves such
pairs out, and their number is reported beside it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dpq_core.errors import SpecError

SSIM_PROTOCOL = "Gaussian window 11, sigma 1.5"
"""How `ssim` is set up, for the protocol of a metric."""

MIN_SIDE = 6
"""Pixels: SSIM mirrors 5 of them at every border, which takes one more."""

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 of Wang et al. 2004, for values in [0, 1]


def mean_squared_error(images: Tensor, baseline: Tensor) -> Tensor:
    """Mean squared error of each pair of images, in squared units of their values.

    Args:
        images: ``[N, H, W, C]``, uint8 levels or floating point in [0, 1].
        baseline: the images to compare with, alike in shape and dtype.

    Returns:
        Float64 ``[N]``; 0 exactly where a pair is identical.

    Raises:
        SpecError: the shapes or dtypes differ.
    """
    _check_pair(images, baseline)
    return (images.double() - baseline.double()).square().flatten(1).mean(1)


def decibels(error: Tensor, peak: float) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors; infinite for an error of 0.

    Args:
        error: mean squared errors of any shape, in squared units of the values.
        peak: largest value that an image can have, 255 or 1.
    """
    return 10 * torch.log10(peak**2 / error)


def psnr(images: Tensor, baseline: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of images, in dB; infinite for an identical pair.

    Args:
        images: ``[N, H, W, C]``, uint8 levels (peak 255) or floating point in [0, 1] (peak 1).
        baseline: the images to compare with, alike in shape and dtype.

    Returns:
        Float64 ``[N]``.

    Raises:
        SpecError: the shapes or dtypes differ.
    """
    return decibels(mean_squared_error(images, baseline), _peak(images))


def mean_psnr(values: Tensor) -> tuple[float, int]:
    """Mean PSNR in dB of the pairs that differ, and the number of pairs that are identical.

    Args:
        values: the PSNR of each pair ``[N]``.

    Returns:
        The mean is infinite where all pairs are identical.
    """
    different = values[values != math.inf]
    mean = different.mean().item() if len(different) else math.inf
    return mean, len(values) - len(different)


def ssim(images: Tensor, baseline: Tensor) -> Tensor:
    """Structural similarity of each pair of images (Wang et al. 2004, equation 13).

    The window is Gaussian, 11 pixels wide with sigma 1.5. Channels are compared on their own,
    borders are mirrored, and the mean is taken over the map and the channels: what torchmetrics
    computes by default.

    Args:
        images: ``[N, H, W, C]``, uint8 levels or floating point in [0, 1].
        baseline: the images to compare with, alike in shape and dtype.

    Returns:
        Float64 ``[N]``, at most 1.

    Raises:
        SpecError: the shapes or dtypes differ, or the images are smaller than 6 x 6 pixels.
    """
    _check_pair(images, baseline)
    height, width = images.shape[1:3]
    if min(height, width) < MIN_SIDE:
        raise SpecError(
            f"SSIM needs images of at least {MIN_SIDE} x {MIN_SIDE} pixels, not {width} x {height}"
        )
    x, y = (t.permute(0, 3, 1, 2).double() / _peak(t) for t in (images, baseline))
    mean_x, mean_y, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    variance_x = (xx - mean_x.square()).clamp_min(0)
    variance_y = (yy - mean_y.square()).clamp_min(0)
    covariance = xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).flatten(1).mean(1)


def _peak(images: Tensor) -> float:
    return 255.0 if images.dtype == torch.uint8 else 1.0


def _check_pair(images: Tensor, baseline: Tensor) -> None:
    if images.shape != baseline.shape or images.ndim != 4:
        raise SpecError(
            f"images of shape {list(images.shape)} and {list(baseline.shape)} cannot be compared; "
            "expected two equal shapes [N, H, W, C]"
        )
    dtypes = {images.dtype, baseline.dtype}
    if dtypes != {torch.uint8} and not all(dtype.is_floating_point for dtype in dtypes):
        raise SpecError(
            f"images of {images.dtype} and {baseline.dtype} cannot be compared; expected uint8, or "
            "floating point in [0, 1], on both sides"
        )


def _blurred(planes: Tensor) -> Tensor:
    """Planes ``[5, N, C, H, W]`` under the Gaussian window, same shape, borders mirrored."""
    half = _WINDOW // 2
    offsets = torch.arange(-half, half + 1, dtype=planes.dtype, device=planes.device)
    window = torch.exp(-(offsets / _SIGMA).square() / 2)
    window /= window.sum()
    flat = functional.pad(planes.flatten(0, 1), (half, half, half, half), mode="reflect")
    single = flat.flatten(0, 1).unsqueeze(1)  # [5 N C, 1, H + 10, W + 10]
    across = functional.conv2d(single, window.view(1, 1, 1, -1))
    return functional.conv2d(across, window.view(1, 1, -1, 1)).view(planes.shape)
