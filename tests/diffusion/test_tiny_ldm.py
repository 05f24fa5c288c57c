"""A trained latent diffusion model (convolutions, attention, autoencoder) survives compression."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from repo import ROOT

from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.run import Run
from dpq_core.spec import QuantSpec
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.evaluation.fidelity import compare
from dpq_diffusion.evaluation.tiny_classifier import ClassifierExtractor, load_classifier
from dpq_diffusion.options import CompressOptions as Own
from dpq_diffusion.pipelines.conditions import make_items
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler

CPU = Run(device="cpu")
SOURCE = ROOT / "tests" / "data" / "tiny-ldm"
CLASSIFIER = ROOT / "adapters" / "dpq_diffusion" / "builtin" / "tiny-dit" / "classifier"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """Compress denoiser and autoencoder at so many bits; gives the report, made once."""

    @cache
    def make(bits: int):
        options = CompressOptions(adapter=Own(components="unet,vqvae"), probe=False)
        spec = QuantSpec.preset(bits, kmeans={"iterations": 8})
        out = tmp_path_factory.mktemp("ldm") / "out"
        return compress(DiffusionAdapter(), str(SOURCE), out, spec, options=options)

    return make


def sampler_of(source, guidance: float = 2.0):
    wish = RequestedSettings(steps=12, guidance=guidance)
    return make_sampler(load_pipeline(str(source), CPU), wish)


def agreement(images: torch.Tensor, labels: list[int]) -> float:
    """Share of images that a classifier of the same data takes for what was asked for."""
    extractor = ClassifierExtractor(load_classifier(CLASSIFIER), device=torch.device("cpu"))
    inner = images[:, 2:-2, 2:-2].expand(-1, -1, -1, 3).contiguous()  # the model adds two pixels
    found = extractor.features(inner)["logits"].argmax(1)
    return (found == torch.tensor(labels)).float().mean().item()


def test_four_bits_draw_the_same_pictures(compressed):
    report = compressed(4)
    errors = [tensor.relative_error for tensor in report.tensors if tensor.relative_error]
    convolutions = [tensor for tensor in report.tensors if len(tensor.shape) == 4]
    assert len(convolutions) > 20
    assert max(errors) < 0.02
    after, before = sampler_of(report.artifact), sampler_of(SOURCE)
    items = make_items(before.conditions((), ()), 20, seed=0)
    found = compare(after, before, items, 20, CPU.progress)
    assert found.images.psnr > 24
    assert found.images.ssim.mean() > 0.92
    assert found.latents.mean() < 0.02  # of latents with unit variance
    labels = [item.condition.label for item in items]
    assert agreement(after.draw(items), labels) >= 0.85
    assert agreement(before.draw(items), labels) >= 0.85


def test_fewer_bits_are_worse_and_smaller(compressed):
    before = sampler_of(SOURCE)
    items = make_items(before.conditions((), ()), 10, seed=0)
    sizes, errors = [], []
    for bits in (4, 2):
        report = compressed(bits)
        after = sampler_of(report.artifact)
        errors.append(compare(after, before, items, 10, CPU.progress).latents.mean().item())
        sizes.append(report.nbytes)
    assert sizes[0] > 1.2 * sizes[1]
    assert errors[0] < 0.5 * errors[1]


def test_guidance_uses_the_row_behind_the_named_classes():
    sampler = sampler_of(SOURCE, guidance=1.5)
    assert [c.name for c in sampler.conditions((), ())][:2] == ["T-shirt/top", "Trouser"]
    seen = []
    sampler.pipeline.unet.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    sampler.draw(make_items(sampler.conditions(("Bag", "1"), ()), 2, seed=0))
    assert seen == [[8, 1, 10, 10]] * 12
