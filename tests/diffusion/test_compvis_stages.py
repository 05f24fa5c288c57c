"""CompVis LDM checkpoints: every stage computes in diffusers what it did."""

from __future__ import annotations

import diffusion_models
import pytest
import torch
import yaml
from compvis_checkpoints import BETAS, CONTEXT, by_class, by_text, save, unconditional
from compvis_ldm import Autoencoder, LatentDiffusion, randomized
from compvis_unet import UNet

from dpq_core.run import Run
from dpq_diffusion.convert import ldm_first_stage
from dpq_diffusion.convert.conversion import ConvertedComponent
from dpq_diffusion.convert.ldm import convert
from dpq_diffusion.convert.ldm_settings import LdmSettings
from dpq_diffusion.pipelines.loading import load_pipeline

pytestmark = pytest.mark.slow  # whole runs of a job

CPU = Run(device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


UNETS = {
    "plain": ({"head_channels": 32}, "{num_head_channels: 32, num_heads: -1}"),
    "narrow heads": ({"head_channels": 16, "attended": (0, 1)}, "{num_head_channels: 16}"),
    "eight heads": ({"heads": 8}, "{num_heads: 8}"),
    "new order": ({"heads": 4, "new_order": True}, "{num_heads: 4, use_new_attention_order: true}"),
    "scale and shift": ({"head_channels": 32, "scale_shift": True}, "{num_head_channels: 32}"),
    "three levels": ({"head_channels": 32, "widths": (32, 64, 96), "depth": 2}, "{}"),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", UNETS)
def test_unets_with_plain_attention(kind, tmp_path):
    options, heads = UNETS[kind]
    model = unconditional(**options)
    unet = load_pipeline(save(model, tmp_path, heads), CPU).unet
    x, t = noise(2, 3, 8, 8), torch.tensor([7, 600])
    close(unet(x, t).sample, model.model["diffusion_model"](x, t))


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, "{}"),
        ({"heads": 4}, "{num_heads: 4}"),
        ({"head_channels": 16}, "{num_head_channels: 16}"),
    ],
)
def test_unets_with_spatial_transformers(options, heads, tmp_path):
    model = by_class()
    model.model["diffusion_model"] = randomized(UNet(context=CONTEXT, attended=(0, 1), **options))
    unet = load_pipeline(save(model, tmp_path, heads), CPU).unet
    x, t, context = noise(2, 3, 8, 8), torch.tensor([7, 600]), noise(2, 5, CONTEXT)
    close(unet(x, t, context).sample, model.model["diffusion_model"](x, t, context))


@torch.no_grad()
@pytest.mark.parametrize("attended", [(), (0, 1)], ids=["", "attention"])
@pytest.mark.parametrize("words", [0, 16], ids=["kl", "vq"])
def test_first_stages(words, attended, tmp_path):
    model = unconditional()
    model.first_stage_model = first = randomized(Autoencoder(words=words, attended=attended))
    vae = load_pipeline(save(model, tmp_path), CPU).vqvae
    x, z = noise(1, 3, 16, 16), noise(1, 3, 8, 8)
    encoded = vae.encode(x)
    close(encoded.latents if words else encoded.latent_dist.mean, first.encode(x))
    close(vae.decode(z).sample, first.decode(z))
    assert vae.config.scaling_factor == 1
    assert vae.config.sample_size == 16


@torch.no_grad()
def test_the_text_encoder(tmp_path):
    model = by_text()
    pipeline = load_pipeline(save(model, tmp_path, "{num_heads: 8}"), CPU)
    tokens = torch.arange(40)[None] % 31
    close(pipeline.bert(tokens)[0], model.cond_stage_model.transformer(tokens))


@torch.no_grad()
def test_stable_diffusion_with_clip(tmp_path):
    expected = diffusion_models.text_encoder()
    model = by_text()
    del model.cond_stage_model
    weights = model.state_dict() | {
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": value
        for name, value in expected.state_dict().items()
    }
    weights["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(8)
    torch.save({"state_dict": weights}, tmp_path / "sd.ckpt")  # noqa: TID251
    diffusion_models.clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    pipeline = load_pipeline(str(tmp_path / "sd.ckpt"), CPU)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.vae.config.scaling_factor == 0.18215
    tokens = torch.arange(2, 10)[None]
    one_head = type(expected)(pipeline.text_encoder.config)  # heads of 64, as the published one
    assert one_head.config.num_attention_heads == 1
    one_head.load_state_dict(expected.state_dict())
    close(pipeline.text_encoder(tokens)[0], one_head.eval()(tokens)[0])


PUBLISHED = {
    "cin256-v2": (
        {"widths": (192, 384, 576, 960), "attended": (1, 2, 3), "context": 512},
        {"widths": (128, 256, 512), "words": 8192},
        "num_heads: 1",
        400.92,
    ),
    "celebahq256": (
        {"widths": (224, 448, 672, 896), "attended": (1, 2, 3), "head_channels": 32},
        {"widths": (128, 256, 512), "words": 8192},
        "num_head_channels: 32",
        274.06,
    ),
    "Stable Diffusion 1": (
        {"channels": 4, "widths": (320, 640, 1280, 1280), "attended": (0, 1, 2), "context": 768},
        {"widths": (128, 256, 512, 512), "latents": 4},
        "num_heads: 8",
        859.52,
    ),
}
"""UNet, autoencoder, heads, and millions of parameters of the UNet."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_structures_fit_the_classes_of_diffusers(name):
    import diffusers

    unet, first, heads, millions = PUBLISHED[name]
    with torch.device("meta"):
        model = LatentDiffusion(UNet(depth=2, **unet), Autoencoder(depth=2, **first), None, BETAS)
    params = {"unet_config": {"params": yaml.safe_load(f"{{{heads}}}")}}
    made = convert(model.state_dict(), LdmSettings(params=params), [])
    parts = dict(made.parts)
    if "context" in unet:  # without its conditioner a UNet comes alone
        first_stage = ldm_first_stage.tensors_of(model.state_dict())
        config = ldm_first_stage.config_of(first_stage, latent_size=64, scale=1.0)
        weights = ldm_first_stage.rename(first_stage, config)
        parts = {"unet": parts[""], "vqvae": ConvertedComponent(config=config, weights=weights)}
    for part in (parts["unet"], parts["vqvae"]):
        with torch.device("meta"):
            expected = getattr(diffusers, part.class_name).from_config(dict(part.config))
        shapes = {key: value.shape for key, value in expected.state_dict().items()}
        assert {key: value.shape for key, value in part.weights.items()} == shapes
    total = sum(value.numel() for value in parts["unet"].weights.values())
    assert total / 1e6 == pytest.approx(millions, abs=0.01)
