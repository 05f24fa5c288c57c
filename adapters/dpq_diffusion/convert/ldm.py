"""Conversion of a CompVis LDM checkpoint to the diffusers pipeline that draws the same images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dpq_diffusion.convert import ldm_first_stage
from dpq_diffusion.convert import ldm_unet as ldm_keys
from dpq_diffusion.convert.conversion import Conversion, ConvertedComponent
from dpq_diffusion.convert.ldm_conditioner import conditioner_of, null_class
from dpq_diffusion.convert.ldm_settings import LdmSettings

_LATENT_SIZES = {"class_embedder": 64, "bert": 32, "text_encoder": 64, "": 64}
"""Side of the latents of the published models, by conditioner."""

_BETAS = {"bert": (0.00085, 0.012), "text_encoder": (0.00085, 0.012)}
_LDM_BETAS = (0.0015, 0.0195)
"""First and last beta of the published models."""

_KL_SCALE = 0.18215

_TOKENIZERS = {"bert": "BertTokenizer", "text_encoder": "CLIPTokenizer"}


def convert(
    tensors: Mapping[str, Tensor], settings: LdmSettings, tokenizer: list[Path]
) -> Conversion:
    """Convert all components that a checkpoint holds.

    A UNet whose first stage is missing, or whose conditioner is of another kind, comes alone: it
    can be compressed, but not sampled.

    Args:
        tensors: the checkpoint's tensors by name.
        settings: the settings in the YAML beside it.
        tokenizer: files of a tokenizer, which no checkpoint holds.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor or the arrangement has no place in diffusers.
        SourceError: a setting is not valid.
    """
    unet = ldm_keys.tensors_of(tensors)
    first = ldm_first_stage.tensors_of(tensors)
    conditioner = conditioner_of(tensors) if ldm_keys.reads_context(unet) else None
    name = conditioner[0] if conditioner is not None else ""
    size = settings.count("image_size") or _LATENT_SIZES[name]
    heads = 1 if name == "class_embedder" else 8
    config = ldm_keys.config_of(unet, settings, latent_size=size, heads=heads)
    denoiser = ConvertedComponent(config=config, weights=ldm_keys.rename(unet, config, settings))
    # Images, masks and layouts come as further channels of the input, or as other contexts.
    conditioned = any(key.startswith("cond_stage_model.") for key in tensors)
    unknown = conditioner is None and (conditioned or ldm_keys.reads_context(unet))
    if not first or unknown or config["in_channels"] != config["out_channels"]:
        return Conversion(parts={"": denoiser})
    published = _BETAS.get(name, _LDM_BETAS)
    scheduler = ConvertedComponent(config=settings.scheduler(tensors, published=published))
    parts = {"unet": denoiser, "scheduler": scheduler}
    parts["vae" if name == "text_encoder" else "vqvae"] = _first_stage(
        first, size, _scale(tensors, first, settings)
    )
    if conditioner is None:
        return Conversion(pipeline="LDMPipeline", parts=parts)
    parts[name] = conditioner[1]
    if name == "class_embedder":
        null = null_class(conditioner[1].config["num_embeddings"])
        return Conversion(pipeline="ClassLDMPipeline", parts=parts, settings={"null_class": null})
    return _text_to_image(name, parts, tokenizer)


def _text_to_image(
    name: str, parts: Mapping[str, ConvertedComponent], tokenizer: list[Path]
) -> Conversion:
    """A text-to-image pipeline; without a tokenizer it can be compressed, but not sampled."""
    more: dict[str, Any] = {"tokenizer": ["transformers", _TOKENIZERS[name]]}
    if not tokenizer:
        more = {"tokenizer": [None, None]}
    kind = "LDMTextToImagePipeline"
    if name == "text_encoder":
        kind = "StableDiffusionPipeline"
        more |= dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), [None] * 2)
        more["requires_safety_checker"] = False
    files = {f"tokenizer/{path.name}": path for path in tokenizer}
    return Conversion(pipeline=kind, parts=parts, settings=more, files=files)


def _first_stage(first: Mapping[str, Tensor], size: int, scale: float) -> ConvertedComponent:
    config = ldm_first_stage.config_of(first, latent_size=size, scale=scale)
    return ConvertedComponent(config=config, weights=ldm_first_stage.rename(first, config))


def _scale(
    tensors: Mapping[str, Tensor], first: Mapping[str, Tensor], settings: LdmSettings
) -> float:
    """The factor to the denoiser's latents: stored in training, of the YAML, or as published."""
    stored = tensors.get("scale_factor")
    if stored is not None and stored.numel() == 1:
        return float(stored.item())
    given = settings.number("scale_factor")
    if given is not None:
        return given
    quantized = "quantize.embedding.weight" in first
    return 1.0 if quantized or settings.params else _KL_SCALE
