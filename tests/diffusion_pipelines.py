"""Random pipelines in the layouts of diffusers, of the models in ``diffusion_models``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusion_models
import torch

CLASSES = ("circle", "square", "cross, plus sign")


def pixel_dit(*, classes: tuple[str, ...] = CLASSES, side: int = 8) -> Any:
    """A DiT with learned variance on grey pixels."""
    from diffusers import DDIMScheduler

    from dpq_diffusion.class_pipelines import PixelDiTPipeline

    names = {str(number): name for number, name in enumerate(classes)}
    model = _narrow_dit(in_channels=1, classes=len(classes), side=side)
    return PixelDiTPipeline(model, DDIMScheduler(), names)


def latent_dit() -> Any:
    """``DiTPipeline``: four latent channels, an autoencoder, images of 8x8 pixels."""
    from diffusers import DDIMScheduler, DiTPipeline

    model = _narrow_dit(in_channels=4, classes=3, side=4)
    names = {0: "circle", 1: "square"}
    return DiTPipeline(
        model, diffusion_models.autoencoder(2, 8), DDIMScheduler(clip_sample=False), names
    )


def latent_unet() -> Any:
    """``LDMPipeline``: an unconditional UNet and a vector-quantized autoencoder."""
    from diffusers import DDIMScheduler, LDMPipeline

    model = diffusion_models.unet(num_class_embeds=None)
    return LDMPipeline(
        diffusion_models.quantizing_autoencoder(), model, DDIMScheduler(clip_sample=False)
    )


def class_ldm(*, classes: int = 10) -> Any:
    """``ClassLDMPipeline`` in the structure of cin256-v2; the null class comes last."""
    from dpq_diffusion.class_pipelines import ClassEmbedder, ClassLDMPipeline

    model = diffusion_models.unet_condition(in_channels=3, out_channels=3, attention_head_dim=1)
    embedder = diffusion_models._lively(ClassEmbedder(classes + 1, diffusion_models.WIDTH))
    vqvae = diffusion_models.quantizing_autoencoder()
    return ClassLDMPipeline(vqvae, embedder, model, _ldm_scheduler(), null_class=classes)


def text_to_image() -> Any:
    """``StableDiffusionPipeline``."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=diffusion_models.autoencoder(),
        text_encoder=diffusion_models.text_encoder(),
        tokenizer=diffusion_models.clip_tokenizer(),
        unet=diffusion_models.unet_condition(),
        scheduler=_ldm_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """``StableDiffusionXLPipeline``: two text encoders, sizes as further conditions."""
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=diffusion_models.autoencoder(force_upcast=False),
        text_encoder=diffusion_models.text_encoder(),
        text_encoder_2=diffusion_models.text_encoder(projection=True),
        tokenizer=diffusion_models.clip_tokenizer(),
        tokenizer_2=diffusion_models.clip_tokenizer(),
        unet=diffusion_models.unet_condition(
            cross_attention_dim=2 * diffusion_models.WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=diffusion_models.WIDTH + 6 * 8,
        ),
        scheduler=_ldm_scheduler(),
        add_watermarker=False,
    )


def ldm_text() -> Any:
    """``LDMTextToImagePipeline``, whose latents are always eight times smaller than images."""
    from diffusers import LDMTextToImagePipeline

    return LDMTextToImagePipeline(
        diffusion_models.autoencoder(4, 8),
        diffusion_models.bert(),
        diffusion_models.bert_tokenizer(),
        diffusion_models.unet_condition(),
        _ldm_scheduler(),
    )


def pixart_alpha() -> Any:
    """``PixArtAlphaPipeline`` for 256 pixels, the smallest that its classes know."""
    from diffusers import PixArtAlphaPipeline

    return _pixart_pipeline(PixArtAlphaPipeline)


def pixart_sigma() -> Any:
    """``PixArtSigmaPipeline`` for 256 pixels."""
    from diffusers import PixArtSigmaPipeline

    return _pixart_pipeline(PixArtSigmaPipeline)


def _pixart_pipeline(kind: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return kind(
        tokenizer=diffusion_models.t5_tokenizer(),
        text_encoder=diffusion_models.t5_encoder(),
        vae=diffusion_models.autoencoder(4, 8),
        transformer=diffusion_models.pixart(sample_size=32),
        scheduler=DPMSolverMultistepScheduler(),
    )


def flux_pipeline(*, guided: bool = True) -> Any:
    """``FluxPipeline``: CLIP and T5; images of 128 pixels, as its class has it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guided),
        vae=diffusion_models.autoencoder(1, 8, shift_factor=0.1),
        text_encoder=diffusion_models.text_encoder(),
        tokenizer=diffusion_models.clip_tokenizer(),
        text_encoder_2=diffusion_models.t5_encoder(),
        tokenizer_2=diffusion_models.t5_tokenizer(),
        transformer=diffusion_models.flux(guided=guided),
    )


def flux_schnell() -> Any:
    """``FluxPipeline`` without embedded guidance."""
    return flux_pipeline(guided=False)


def dit_pipeline(folder: Path) -> Path:
    """``DiTPipeline`` with an autoencoder and class names, saved."""
    from diffusers import DDIMScheduler, DiTPipeline

    labels = {str(number): f"class {number}" for number in range(80)}
    DiTPipeline(
        diffusion_models.dit(), diffusion_models.autoencoder(), DDIMScheduler(), labels
    ).save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}))
    return folder


def text_pipeline(folder: Path) -> Path:
    """``StableDiffusionPipeline``, saved."""
    text_to_image().save_pretrained(folder)
    return folder


def disturbed(pipeline: Any, share: float = 0.05) -> Any:
    """The pipeline with noise on the weights of its denoiser, as if compressed."""
    generator = torch.Generator().manual_seed(1)
    model = getattr(pipeline, "transformer", None) or pipeline.unet
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += share * parameter.data.std(correction=0) * noise
    return pipeline


def _narrow_dit(*, in_channels: int, classes: int, side: int) -> Any:
    return diffusion_models.dit(
        attention_head_dim=8,
        in_channels=in_channels,
        out_channels=2 * in_channels,
        num_layers=2,
        sample_size=side,
        num_embeds_ada_norm=classes,
    )


def _ldm_scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
