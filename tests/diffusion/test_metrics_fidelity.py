"""Sets of images compared pair by pair, and errors of latents."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
)

from dpq_core.errors import SpecError
from dpq_core.plugin.image_metrics import psnr
from dpq_diffusion.evaluation.fidelity import latent_mse
from dpq_diffusion.sampling.image_pairs import compare_images
from dpq_diffusion.sampling.images import ArrayImages

pytestmark = pytest.mark.portable


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
    ids=["sets", "shape", "nan"],
)
def test_refusals(call, message):
    with pytest.raises(SpecError, match=message):
        call(*pair())
