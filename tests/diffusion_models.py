"""Random models in the layouts of diffusers, just wide enough to be compressed."""

from __future__ import annotations

import string
from collections.abc import Callable
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


def unet(**changes: Any) -> Any:
    """A class-conditional ``UNet2DModel`` with convolutions and attention, as in LDM."""
    from diffusers import UNet2DModel

    sizes = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "num_class_embeds": 40,
    }
    return _lively(UNet2DModel(**{**sizes, **changes}))


def unet_condition(groups: int = 4, **changes: Any) -> Any:
    """A ``UNet2DConditionModel`` as in Stable Diffusion, there with 32 groups per norm."""
    from diffusers import UNet2DConditionModel

    sizes = {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "norm_num_groups": groups,
        "attention_head_dim": 8,
    }
    return _lively(UNet2DConditionModel(**{**sizes, **changes}))


def pixart(sample_size: int = 8) -> Any:
    """A ``PixArtTransformer2DModel``."""
    from diffusers import PixArtTransformer2DModel

    return _lively(
        PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=WIDTH // 2,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=sample_size,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
        )
    )


def flux(*, guided: bool = True) -> Any:
    """A ``FluxTransformer2DModel`` with one block of each kind; dev is guided, schnell is not."""
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
            guidance_embeds=guided,
        )
    )


def autoencoder(levels: int = 1, width: int = 32, **changes: Any) -> Any:
    """An ``AutoencoderKL``; latents are ``2 ** (levels - 1)`` times smaller than images."""
    from diffusers import AutoencoderKL

    return _lively(AutoencoderKL(latent_channels=4, **_stages(levels, width), **changes))


def quantizing_autoencoder() -> Any:
    """A ``VQModel`` of two levels, three latent channels."""
    from diffusers import VQModel

    return _lively(VQModel(latent_channels=3, num_vq_embeddings=16, **_stages(2, 32)))


def _stages(levels: int, width: int) -> dict[str, Any]:
    return {
        "block_out_channels": (width,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 2,
    }


def text_encoder(*, projection: bool = False) -> Any:
    """A ``CLIPTextModel``, or ``CLIPTextModelWithProjection``."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return _lively((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def t5_encoder() -> Any:
    """A ``T5EncoderModel`` with gated feed-forward layers, as T5 1.1 has them."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=128,
        d_model=WIDTH,
        d_kv=WIDTH // 2,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return _lively(T5EncoderModel(config))


def bert() -> Any:
    """The text encoder of LDM text-to-image."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    config = LDMBertConfig(
        vocab_size=128,
        encoder_layers=2,
        encoder_ffn_dim=4 * WIDTH,
        encoder_attention_heads=8,
        head_dim=8,
        d_model=WIDTH,
    )
    return _lively(LDMBertModel(config))


def clip_tokenizer() -> Any:
    """Letters, one token each."""
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{c}</w>" for c in _LETTERS)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)


def t5_tokenizer() -> Any:
    """Letters, one token each, padded with 0 and ended with 1."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *_LETTERS]
    return T5Tokenizer(vocab=[(piece, -2.0) for piece in pieces], extra_ids=0)


def bert_tokenizer() -> Any:
    """Letters, one token each, between a first and a last token."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


_LETTERS = string.ascii_lowercase

BARE: dict[str, Callable[[], Any]] = {
    "dit": dit,
    "unet": unet,
    "unet_condition": unet_condition,
    "pixart": pixart,
    "flux": flux,
    "vae": autoencoder,
}


def _lively(model: Any) -> Any:
    """Weights and biases so large that every layer shows in the output; the same in every run."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        norm = "norm" in name and parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1 + noise if norm else noise
    return model.eval()
