"""Random pipelines just wide enough to be compressed, saved as folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WIDTH = 64


def dit(**changes: Any) -> Any:
    """A ``DiTTransformer2DModel`` whose blocks share their embedding, as trained ones do."""
    from diffusers import DiTTransformer2DModel

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": WIDTH // 2,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 80,
    }
    model = _lively(DiTTransformer2DModel(**{**sizes, **changes}))
    embedding = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(embedding)
    return model


def unet() -> Any:
    """A class-conditional ``UNet2DModel`` with convolutions and attention, as in LDM."""
    from diffusers import UNet2DModel

    return _lively(
        UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
            num_class_embeds=40,
        )
    )


def unet_condition(groups: int = 4) -> Any:
    """A ``UNet2DConditionModel`` as in Stable Diffusion, there with 32 groups per norm."""
    from diffusers import UNet2DConditionModel

    return _lively(
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            norm_num_groups=groups,
            attention_head_dim=8,
        )
    )


def pixart() -> Any:
    """A ``PixArtTransformer2DModel``."""
    from diffusers import PixArtTransformer2DModel

    return _lively(
        PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=WIDTH // 2,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=8,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
        )
    )


def flux() -> Any:
    """A ``FluxTransformer2DModel`` with one block of each kind."""
    from diffusers import FluxTransformer2DModel

    return _lively(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(8, 12, 12),
            guidance_embeds=True,
        )
    )


def autoencoder() -> Any:
    """An ``AutoencoderKL``."""
    from diffusers import AutoencoderKL

    return _lively(AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=2))


def text_encoder() -> Any:
    """A ``CLIPTextModel``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return _lively(CLIPTextModel(config))


BARE: dict[str, Callable[[], Any]] = {
    "dit": dit,
    "unet": unet,
    "unet_condition": unet_condition,
    "pixart": pixart,
    "flux": flux,
    "vae": autoencoder,
}


def dit_pipeline(folder: Path) -> Path:
    """``DiTPipeline`` with an autoencoder and class names."""
    from diffusers import DDIMScheduler, DiTPipeline

    labels = {str(number): f"class {number}" for number in range(80)}
    DiTPipeline(dit(), autoencoder(), DDIMScheduler(), labels).save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}))
    return folder


def text_pipeline(folder: Path) -> Path:
    """``StableDiffusionPipeline`` with the smallest tokenizer that can be saved."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)
    StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer,
        unet=unet_condition(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _lively(model: Any) -> Any:
    """Weights and biases so large that every layer shows in the output; the same in every run."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        norm = "norm" in name and parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1 + noise if norm else noise
    return model.eval()
