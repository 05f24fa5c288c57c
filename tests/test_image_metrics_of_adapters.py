"""Both adapters that compare images give the same number for the same pair."""

from __future__ import annotations

import math

import pytest
import torch

from dpq_diffusion.sampling.image_pairs import compare_images
from dpq_diffusion.sampling.images import ArrayImages
from dpq_gaussian.evaluation.metrics import score


@pytest.mark.parametrize("noise", [0, 3, 40])
def test_psnr_and_ssim_are_the_same_in_both_adapters(noise):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randint(0, 256, (1, 20, 24, 3), generator=generator)
    errors = torch.randint(-noise, noise + 1, reference.shape, generator=generator)
    pair = [levels.clamp(0, 255).to(torch.uint8) for levels in (reference + errors, reference)]
    fidelity = compare_images(*(ArrayImages(images) for images in pair))
    scores = score(*(images[0].double() / 255 for images in pair))
    assert scores["PSNR"] == pytest.approx(fidelity.psnr, rel=1e-12)
    assert scores["SSIM"] == pytest.approx(fidelity.ssim.item(), rel=1e-9)
    assert (scores["PSNR"] == math.inf) == (noise == 0)
