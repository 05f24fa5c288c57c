"""Tiny diffusers pipelines with random weights; nothing is read from disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

CLASSES = ("circle", "square", "cross, plus sign")


def pixel_dit(seed: int = 0, *, classes: tuple[str, ...] = CLASSES, side: int = 8) -> Any:
    """A DiT with learned variance on grey pixels."""
    from diffusers import DDIMScheduler

    from dpq_diffusion.pixel_pipeline import PixelDiTPipeline

    names = {str(number): name for number, name in enumerate(classes)}
    return PixelDiTPipeline(
        _dit(seed, in_channels=1, classes=len(classes), side=side), DDIMScheduler(), names
    )


def latent_dit(seed: int = 0) -> Any:
    """``DiTPipeline``: four latent channels, an autoencoder, images of 8x8 pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    with _seeded(seed):
        vae = AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
        ).eval()
    model = _dit(seed, in_channels=4, classes=3, side=4)
    return DiTPipeline(model, vae, DDIMScheduler(clip_sample=False), {0: "circle", 1: "square"})


def unet(seed: int = 0, **options: Any) -> Any:
    """A tiny ``UNet2DModel``."""
    from diffusers import UNet2DModel

    with _seeded(seed):
        return UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            **options,
        ).eval()


def latent_unet(seed: int = 0) -> Any:
    """``LDMPipeline``: an unconditional UNet and a vector-quantized autoencoder."""
    from diffusers import DDIMScheduler, LDMPipeline, VQModel

    with _seeded(seed):
        vqvae = VQModel(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            num_vq_embeddings=16,
            norm_num_groups=2,
        ).eval()
    return LDMPipeline(vqvae, unet(seed), DDIMScheduler(clip_sample=False))


def text_to_image(seed: int = 0) -> Any:
    """``StableDiffusionPipeline`` with a tokenizer that counts letters."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextConfig, CLIPTextModel

    with _seeded(seed):
        text = CLIPTextConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        model = UNet(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            norm_num_groups=4,
            attention_head_dim=2,
        )
        vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2)
        return StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=Letters(),
            unet=model.eval(),
            scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


class Letters:
    """The eight first letters of a text as numbers below 32."""

    model_max_length = 8
    added_tokens_encoder: ClassVar[dict[str, int]] = {}

    def __call__(self, texts: list[str], **options: Any) -> Any:
        rows = [[ord(c) % 32 for c in text.ljust(8)[:8]] for text in texts]
        return SimpleNamespace(input_ids=torch.tensor(rows), attention_mask=None)

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def batch_decode(self, ids: Any) -> list[str]:
        return [str(row.tolist()) for row in ids]


def disturbed(pipeline: Any, share: float = 0.05) -> Any:
    """The pipeline with noise on the weights of its denoiser, as if compressed."""
    generator = torch.Generator().manual_seed(1)
    model = getattr(pipeline, "transformer", None) or pipeline.unet
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += share * parameter.data.std(correction=0) * noise
    return pipeline


def _dit(seed: int, *, in_channels: int, classes: int, side: int) -> Any:
    from diffusers import DiTTransformer2DModel

    with _seeded(seed):
        return DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=in_channels,
            out_channels=2 * in_channels,
            num_layers=2,
            sample_size=side,
            patch_size=2,
            num_embeds_ada_norm=classes,
        ).eval()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
