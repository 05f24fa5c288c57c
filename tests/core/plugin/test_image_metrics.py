"""PSNR and SSIM against torchmetrics and closed forms, for 8-bit levels and values in [0, 1]."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from dpq_core.errors import SpecError
from dpq_core.plugin.image_metrics import (
    decibels,
    mean_psnr,
    mean_squared_error,
    psnr,
    ssim,
)


def pair(n=5, height=28, width=20, channels=3):
    """Random images uint8 and noisy versions of them, noisier with the index."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (n, height, width, channels), generator=generator)
    noise = torch.randn(base.shape, generator=generator) * 8
    noise *= torch.arange(1, n + 1).view(-1, 1, 1, 1)
    return base.to(torch.uint8), (base + noise).clamp(0, 255).to(torch.uint8)


def planes(images):
    return images.permute(0, 3, 1, 2).double()


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_torchmetrics_per_image(channels):
    a, b = pair(channels=channels)
    peer_ssim = structural_similarity_index_measure(
        planes(b) / 255, planes(a) / 255, data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(ssim(b, a), peer_ssim, rtol=1e-9, atol=1e-12)
    peer_psnr = peak_signal_noise_ratio(
        planes(b), planes(a), data_range=255.0, reduction="none", dim=(1, 2, 3)
    )
    torch.testing.assert_close(psnr(b, a), peer_psnr, rtol=1e-6, atol=0)


def test_closed_forms():
    flat = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    off = flat + torch.tensor([0, 5], dtype=torch.uint8).view(2, 1, 1, 1)
    assert mean_squared_error(off, flat).tolist() == [0, 25]
    ratios = psnr(off, flat)
    assert ratios[0] == math.inf
    assert ratios[1].item() == pytest.approx(20 * math.log10(255 / 5), rel=1e-12)
    x, y = 100 / 255, 105 / 255
    luminance = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert ssim(off, flat).tolist() == pytest.approx([1, luminance], rel=1e-9)


def test_levels_and_values_in_the_unit_interval_give_the_same_numbers():
    a, b = pair()
    scaled = a.double() / 255, b.double() / 255
    torch.testing.assert_close(psnr(*scaled), psnr(a, b), rtol=1e-12, atol=0)
    torch.testing.assert_close(ssim(*scaled), ssim(a, b), rtol=1e-9, atol=1e-12)


def test_a_mean_leaves_identical_pairs_out_and_counts_them():
    a, b = pair()
    b[2] = a[2]
    ratios = psnr(b, a)
    mean, identical = mean_psnr(ratios)
    assert identical == 1
    assert mean == pytest.approx(ratios[[0, 1, 3, 4]].mean().item(), rel=1e-12)
    assert mean_psnr(psnr(a, a)) == (math.inf, len(a))
    assert math.isnan(mean_psnr(decibels(torch.tensor([1.0, math.nan]), 1.0))[0])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda a, b: psnr(a, b[:2]), r"cannot be compared; expected two equal shapes \[N, H"),
        (lambda a, b: psnr(a[0], b[0]), "cannot be compared"),
        (lambda a, b: psnr(a.float(), b), "torch.float32 and torch.uint8 cannot be compared"),
        (lambda a, b: psnr(a.long(), b.long()), "expected uint8, or floating point"),
        (lambda a, b: ssim(a[:, :5], b[:, :5]), "at least 6 x 6 pixels, not 20 x 5"),
    ],
    ids=["count", "axes", "mixed", "integers", "tiny"],
)
def test_refusals(measure, message):
    with pytest.raises(SpecError, match=message):
        measure(*pair())
