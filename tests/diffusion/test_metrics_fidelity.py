"""PSNR, SSIM and latent errors against torchmetrics and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from dpq_core.errors import SpecError
from dpq_diffusion.evaluation.fidelity import compare_images, latent_mse, psnr, ssim
from dpq_diffusion.sampling.images import ArrayImages


def pair(n=5, height=28, width=20, channels=3):
    """Smooth-ish images uint8 and noisy versions of them, noisier with the index."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (n, height, width, channels), generator=generator)
    noise = (
        torch.randn(base.shape, generator=generator) * 8 * torch.arange(1, n + 1).view(-1, 1, 1, 1)
    )
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
    found = psnr(off, flat)
    assert found[0] == math.inf
    assert found[1].item() == pytest.approx(20 * math.log10(255 / 5), rel=1e-12)
    x, y = 100 / 255, 105 / 255
    luminance = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert ssim(off, flat).tolist() == pytest.approx([1, luminance], rel=1e-9)


def test_comparison_keeps_every_image_for_any_batch_size():
    a, b = pair(7)
    whole = compare_images(ArrayImages(b), ArrayImages(a))
    seen = []
    parts = compare_images(
        ArrayImages(b),
        ArrayImages(a),
        batch_size=3,
        progress=lambda what, done, total: seen.append((done, total)),
    )
    torch.testing.assert_close(parts.mse, whole.mse, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.ssim, whole.ssim, rtol=1e-12, atol=0)
    assert whole.mse.shape == whole.ssim.shape == (7,)
    assert whole.mse.tolist() == sorted(whole.mse.tolist())
    assert seen == [(3, 7), (6, 7), (7, 7)]
    first, second = whole.metrics()
    assert first.name == "PSNR to the uncompressed model"
    assert second.higher_is_better
    assert "over 7 image pairs at the same seeds, 0 of them identical" in first.protocol
    assert "mean over 7 image pairs at the same seeds" in second.protocol


def test_the_psnr_of_a_set_is_that_of_torchmetrics():
    a, b = pair(7)
    found = compare_images(ArrayImages(b), ArrayImages(a))
    peer = peak_signal_noise_ratio(planes(b), planes(a), data_range=255.0)
    assert found.psnr == pytest.approx(peer.item(), rel=1e-6)
    assert found.metrics()[0].value == found.psnr < psnr(b, a).mean()


def test_an_identical_pair_does_not_hide_the_others():
    a, b = pair(4)
    b[2] = a[2]
    found = compare_images(ArrayImages(b), ArrayImages(a))
    each = psnr(b, a)
    assert each.isinf().tolist() == [False, False, True, False]
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / found.mse.mean().item()))
    metric = found.metrics()[0]
    mean = each[~each.isinf()].mean().item()
    assert f"1 of them identical, mean of the 3 PSNRs {mean:.2f} dB" in metric.protocol
    same = compare_images(ArrayImages(a), ArrayImages(a)).metrics()[0]
    assert same.value == math.inf
    assert same.protocol.endswith("4 of them identical")


def test_latent_errors_are_per_image():
    latents = torch.zeros(3, 4, 2, 2)
    other = latents + torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    assert latent_mse(other, latents).tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: psnr(a, b[:2]), "cannot be compared"),
        (lambda a, b: psnr(a.float(), b), "must be uint8, not torch.float32"),
        (lambda a, b: ssim(a[:, :5], b[:, :5]), "at least 6 pixels a side"),
        (
            lambda a, b: compare_images(ArrayImages(a, "mine"), ArrayImages(b[:3], "theirs")),
            "mine holds 5 images of 28x20 and theirs 3 of 28x20; sample both",
        ),
        (lambda a, b: latent_mse(torch.ones(2, 3), torch.ones(3, 2)), "cannot be compared"),
        (
            lambda a, b: latent_mse(torch.tensor([[0.0], [math.nan]]), torch.ones(2, 1)),
            "^latent 1 holds NaN",
        ),
    ],
    ids=["count", "dtype", "tiny", "sets", "shape", "nan"],
)
def test_refusals(call, message):
    with pytest.raises(SpecError, match=message):
        call(*pair())
