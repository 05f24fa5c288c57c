"""Drawing with a denoiser that comes without its pipeline, where it needs nothing else."""

from __future__ import annotations

from typing import Any

import torch

from dpq_core.errors import SourceError

_TEXT = "vae, text_encoder, tokenizer and scheduler"
_NEEDS = {
    "DiTTransformer2DModel": ("DiTPipeline", "transformer", "vae and scheduler"),
    "FluxTransformer2DModel": (
        "FluxPipeline",
        "transformer",
        "vae, text_encoder, text_encoder_2, their tokenizers and scheduler",
    ),
    "PixArtTransformer2DModel": ("PixArtAlphaPipeline", "transformer", _TEXT),
    "UNet2DConditionModel": ("StableDiffusionPipeline", "unet", _TEXT),
    "UNet2DModel": ("LDMPipeline", "unet", "vqvae and scheduler"),
}
"""Denoiser -> a pipeline that it works in, its name there, and what else that needs."""

_PIXELS = (1, 3)


def pipeline_around(model: torch.nn.Module) -> Any:
    """A pipeline for a DiT on grey or coloured pixels, with the noise schedule of the DiT paper.

    Raises:
        SourceError: the model needs other components to draw images.
    """
    kind = type(model).__name__
    config: Any = model.config
    if kind == "DiTTransformer2DModel" and config.in_channels in _PIXELS:
        from diffusers import DDIMScheduler

        from dpq_diffusion.class_pipelines import PixelDiTPipeline

        # 1000 steps, betas from 0.0001 to 0.02 on a straight line: also diffusers' defaults.
        return PixelDiTPipeline(model, DDIMScheduler())  # type: ignore[no-untyped-call]
    if kind not in _NEEDS:
        raise SourceError(f"{kind} alone draws no images; give the folder of its pipeline")
    pipeline, name, rest = _NEEDS[kind]
    if kind == "DiTTransformer2DModel":
        rest += " (of an original .pt, put the folder vae/ beside it)"
    raise SourceError(
        f"{kind} alone draws no images, it lacks {rest}; give "
        f"the folder of a whole pipeline, or {pipeline}.from_pretrained(PIPELINE, "
        f"{name}=MODEL).save_pretrained(FOLDER) once"
    )
