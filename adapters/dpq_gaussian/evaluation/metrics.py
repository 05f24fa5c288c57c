"""How close a picture is to the one it should be: PSNR, SSIM and, with weights, LPIPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpq_core.errors import SpecError

if TYPE_CHECKING:
    from dpq_gaussian.evaluation.lpips import LPIPS

CAP = 100.0
"""dB. The PSNR of a view is at most this, so that identical pictures do not make a mean infinite;
float32 blending alone differs by about as much between two orders of summation."""

WINDOW = 11
"""Pixels across SSIM's Gaussian window, sigma 1.5 (Wang et al. 2004)."""

Scores = Mapping[str, Sequence[float]]
"""Metric -> its value in each view."""


def psnr(picture: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures ``[H, W, 3]`` in [0, 1], at most ``CAP``."""
    _check_pair(picture, reference)
    error = (picture.double() - reference.double()).square().mean()
    return min(CAP, -10 * torch.log10(error).item())


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Structural similarity of pictures ``[H, W, 3]`` in [0, 1], by torchmetrics.

    Raises:
        SpecError: they are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair(picture, reference)
    if min(picture.shape[:2]) < WINDOW:
        raise SpecError(
            f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, not "
            f"{picture.shape[1]} x {picture.shape[0]}"
        )
    a, b = (image.permute(2, 0, 1)[None].float() for image in (picture, reference))
    value = structural_similarity_index_measure(a, b, data_range=1.0)
    if not isinstance(value, Tensor):
        raise TypeError(f"torchmetrics returned {type(value).__name__}")
    return value.item()


def score(picture: Tensor, reference: Tensor, lpips: LPIPS | None = None) -> dict[str, float]:
    """All metrics of one view; both pictures are clamped to [0, 1] and not rounded to 8 bits."""
    pair = picture.clamp(0, 1), reference.clamp(0, 1)
    found = {"PSNR": psnr(*pair), "SSIM": ssim(*pair)}
    if lpips is not None:
        found["LPIPS"] = lpips(*pair)
    return found


def _check_pair(picture: Tensor, reference: Tensor) -> None:
    if picture.shape != reference.shape or picture.ndim != 3 or picture.shape[2] != 3:
        raise SpecError(
            f"pictures of shape {list(picture.shape)} and {list(reference.shape)} cannot be "
            "compared; expected two equal shapes [H, W, 3]"
        )
