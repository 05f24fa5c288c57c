"""Conversion of a CompVis LDM's UNet to diffusers: config and tensor names.

With spatial transformers (LDM text-to-image, class-conditional cin256-v2, Stable Diffusion 1) a
``UNet2DConditionModel``; with plain attention (the unconditional LDMs) a ``UNet2DModel``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dpq_diffusion.convert.ldm_settings import LdmSettings

PREFIX = "model.diffusion_model."

CLASS_TABLE = "cond_stage_model.embedding.weight"
"""The class embedding of cin256-v2; its UNet has one head, those that read text have eight."""

_CONTEXT = "transformer_blocks.0.attn2.to_k.weight"
_QKV = re.compile(r"(.+\.attentions\.\d+)\.qkv\.(weight|bias)")
_HEAD_CHANNELS = 32
"""Width of a head in the published unconditional models (CelebA-HQ, FFHQ, LSUN bedrooms)."""

_PARAMS = ("unet_config", "params")


def tensors_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's tensors without prefix; averaged weights (``model_ema``) where there are any."""
    result = {}
    for name, tensor in tensors.items():
        if name.startswith(PREFIX):
            flat = "model_ema." + name.removeprefix("model.").replace(".", "")
            result[name.removeprefix(PREFIX)] = tensors.get(flat, tensor)
    return result


def is_ldm(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of an LDM."""
    return f"{PREFIX}input_blocks.0.0.weight" in tensors


def reads_context(unet: Mapping[str, Tensor]) -> bool:
    """Whether the UNet has spatial transformers."""
    return any(name.endswith(_CONTEXT) for name in unet)


def config_of(
    unet: Mapping[str, Tensor], settings: LdmSettings, *, latent_size: int, heads: int
) -> dict[str, Any]:
    """The config of the diffusers UNet.

    Args:
        unet: the UNet's tensors (``tensors_of``).
        settings: settings with the number of heads, which is in no tensor.
        latent_size: side of the latents.
        heads: number of heads in spatial transformers, where ``settings`` do not say.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the blocks are not arranged as in the published models.
        SourceError: a setting is not valid.
    """
    widths, attended, depth = _levels(unet)
    scaled = unet["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
    config: dict[str, Any] = {
        "block_out_channels": widths,
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "layers_per_block": depth,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": unet["out.2.weight"].shape[0],
        "resnet_time_scale_shift": "scale_shift" if scaled else "default",
        "sample_size": latent_size,
    }
    if "label_emb.weight" in unet:
        config["num_class_embeds"] = unet["label_emb.weight"].shape[0]
    number, channels = settings.count(*_PARAMS, "num_heads"), None
    if number is None:
        channels = settings.count(*_PARAMS, "num_head_channels")
    mixed = [width for width, one in zip(widths, attended, strict=True) if one] + widths[-1:]
    if reads_context(unet):
        per_level = number or heads if channels is None else [w // channels for w in widths]
        return config | _with_context(unet, attended, per_level)
    if number is not None and len(set(mixed)) > 1:
        raise ValueError(f"{number} heads at several widths, which diffusers cannot express")
    if number is not None:
        channels = mixed[0] // number
    return config | {
        "_class_name": "UNet2DModel",
        "attention_head_dim": channels or _HEAD_CHANNELS,
        "attn_norm_num_groups": 32,  # by default none where the timestep scales
        "down_block_types": [f"{'Attn' * one}DownBlock2D" for one in attended],
        "up_block_types": [f"{'Attn' * one}UpBlock2D" for one in reversed(attended)],
    }


def _with_context(
    unet: Mapping[str, Tensor], attended: list[bool], heads: int | list[int]
) -> dict[str, Any]:
    """The entries of the config that only a ``UNet2DConditionModel`` has."""
    context = next(tensor for name, tensor in unet.items() if name.endswith(_CONTEXT))
    inner = re.compile(r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    return {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": heads,  # the number of heads, for historical reasons
        "cross_attention_dim": context.shape[1],
        "down_block_types": [f"{'CrossAttn' * one}DownBlock2D" for one in attended],
        "transformer_layers_per_block": len({m[1] for n in unet if (m := inner.match(n))}),
        "up_block_types": [f"{'CrossAttn' * one}UpBlock2D" for one in reversed(attended)],
        "use_linear_projection": unet["middle_block.1.proj_in.weight"].ndim == 2,
    }


def _levels(unet: Mapping[str, Tensor]) -> tuple[list[int], list[bool], int]:
    """The width and presence of attention per resolution, and the residual blocks in each."""
    widths: list[int] = []
    attended: list[bool] = []
    counts = [0]
    blocks = {int(m.group(1)) for n in unet if (m := re.match(r"input_blocks\.(\d+)\.", n))}
    for block in range(1, len(blocks)):
        if f"input_blocks.{block}.0.op.weight" in unet:
            counts.append(0)
            continue
        width = unet[f"input_blocks.{block}.0.out_layers.3.weight"].shape[0]
        if counts[-1] == 0:
            widths.append(width)
            attended.append(f"input_blocks.{block}.1.norm.weight" in unet)
        if width != widths[-1]:
            raise ValueError("residual blocks that change the resolution (resblock_updown)")
        counts[-1] += 1
    if not widths or len(set(counts)) > 1:
        raise ValueError("the residual blocks of the UNet are not the same at every resolution")
    return widths, attended, counts[0]


def rename(
    unet: Mapping[str, Tensor], config: Mapping[str, Any], settings: LdmSettings
) -> dict[str, Tensor]:
    """The UNet's tensors under their names in diffusers, by diffusers' own conversion.

    Raises:
        ValueError: a tensor has no place in diffusers.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    result: dict[str, Tensor] = convert_ldm_unet_checkpoint(  # type: ignore[no-untyped-call]
        {PREFIX + name: tensor for name, tensor in unet.items()}, dict(config)
    )
    if len(result) != len(unet) or any(value is None for value in result.values()):
        raise ValueError("some tensors of the UNet have no place in diffusers")
    if reads_context(unet):
        return result
    apart = settings.flag(*_PARAMS, "use_new_attention_order")
    return _plain_attention(result, config["attention_head_dim"], apart=apart)


def _plain_attention(
    tensors: Mapping[str, Tensor], head_channels: int, *, apart: bool
) -> dict[str, Tensor]:
    """Split and rename the attention blocks, which diffusers' conversion leaves as they are.

    Args:
        tensors: names of diffusers but within attention.
        head_channels: width of a head.
        apart: q of all heads come first, then k, then v; else q, k and v of each head in turn.
    """
    result = {}
    for name, tensor in tensors.items():
        if ".attentions." not in name:
            result[name] = tensor
            continue
        tensor = tensor.flatten(1) if tensor.ndim == 3 else tensor  # 1x1 convolutions over pixels
        if match := _QKV.fullmatch(name):
            parts = _split(tensor, head_channels, apart=apart)
            for letter, part in zip("qkv", parts, strict=True):
                result[f"{match[1]}.to_{letter}.{match[2]}"] = part
        else:
            new = name.replace(".norm.", ".group_norm.").replace(".proj_out.", ".to_out.0.")
            result[new] = tensor
    return result


def _split(qkv: Tensor, head_channels: int, *, apart: bool) -> list[Tensor]:
    """Split a joint projection ``[3 * C, ...]`` into q, k and v, each ``[C, ...]``.

    Raises:
        ValueError: the width is not a multiple of that of a head.
    """
    if apart:
        return list(qkv.chunk(3))
    if qkv.shape[0] % (3 * head_channels):
        raise ValueError(f"attention of width {qkv.shape[0] // 3} with heads of {head_channels}")
    heads = qkv.reshape(-1, 3, head_channels, *qkv.shape[1:])
    return [torch.flatten(heads[:, part], 0, 1) for part in range(3)]
