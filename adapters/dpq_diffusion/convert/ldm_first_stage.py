"""Conversion of a CompVis LDM's first stage to ``AutoencoderKL`` or ``VQModel`` of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

PREFIX = "first_stage_model."

_CODEBOOK = "quantize.embedding.weight"
_KEPT = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\..+|quantize\.embedding\.weight")
"""Tensors of the autoencoder; all others (discriminator, perceptual loss) are for training."""

_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)")
_MID = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(\d)\.(.+)")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def tensors_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's tensors, without prefix; empty where there is none."""
    own = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    return {name: tensor for name, tensor in own.items() if _KEPT.fullmatch(name)}


def config_of(first: Mapping[str, Tensor], *, latent_size: int, scale: float) -> dict[str, Any]:
    """The config of the diffusers autoencoder, from names and shapes of tensors.

    Args:
        first: the autoencoder's tensors (``tensors_of``).
        latent_size: side of the latents.
        scale: factor from the autoencoder's latents to the denoiser's.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the arrangement is none that diffusers has.
    """
    levels = 1 + max((int(m[3]) for n in first if (m := _BLOCK.fullmatch(n))), default=-1)
    widths = [first[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    depth = len({m[1] for n in first if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", n))})
    attended = [f"encoder.down.{i}.attn.0.q.weight" in first for i in range(levels)]
    latent, inner = first["post_quant_conv.weight"].shape[:2]
    quantized = _CODEBOOK in first
    if not quantized and latent != inner:
        raise ValueError(f"an autoencoder of {inner} channels around {latent}")
    config = {
        "_class_name": "VQModel" if quantized else "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": [f"{'Attn' * one}DownEncoderBlock2D" for one in attended],
        "in_channels": first["encoder.conv_in.weight"].shape[1],
        "latent_channels": latent,
        "layers_per_block": depth,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in first,
        "norm_num_groups": 32,
        "out_channels": first["decoder.conv_out.weight"].shape[0],
        "sample_size": latent_size * 2 ** (levels - 1),
        "scaling_factor": scale,
        "up_block_types": [f"{'Attn' * one}UpDecoderBlock2D" for one in reversed(attended)],
    }
    if quantized:
        words, width = first[_CODEBOOK].shape
        config |= {"num_vq_embeddings": words, "vq_embed_dim": width}
    return config


def rename(first: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The autoencoder's tensors under their names in diffusers; 1x1 convolutions become Linear.

    Raises:
        ValueError: a tensor has no place in diffusers.
    """
    levels, result = len(config["block_out_channels"]), {}
    for name, tensor in first.items():
        new = _name(name, levels)
        if ".attentions." in new and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        result[new] = tensor
    return result


def _name(name: str, levels: int) -> str:
    if match := _BLOCK.fullmatch(name):
        side, _, level, what, rest = match.groups()
        # CompVis counts levels from the finest in both halves, diffusers in order of computation.
        place = int(level) if side == "encoder" else levels - 1 - int(level)
        return f"{side}.{'down' if side == 'encoder' else 'up'}_blocks.{place}.{_part(what, rest)}"
    if match := _MID.fullmatch(name):
        side, what, number, rest = match.groups()
        return f"{side}.mid_block.{_part(what, f'{int(number) - 1}.{rest}')}"
    if ".down." in name or ".up." in name or ".mid." in name:
        raise ValueError(f"tensor {name!r} of the first stage has no place in diffusers")
    return name.replace(".norm_out.", ".conv_norm_out.")


def _part(what: str, rest: str) -> str:
    """The diffusers name within a block, e.g. of ``block`` and ``0.nin_shortcut.weight``."""
    if what == "block":
        return "resnets." + rest.replace("nin_shortcut", "conv_shortcut")
    if what == "attn":
        number, layer, part = rest.split(".")
        return f"attentions.{number}.{_ATTENTION[layer]}.{part}"
    return f"{what}rs.0.{rest}"  # downsamplers, upsamplers
