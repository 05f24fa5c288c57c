"""Conversion of facebookresearch/DiT to ``DiTTransformer2DModel``: config and tensor names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MARK = "blocks.0.adaLN_modulation.1.weight"

_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_EMBEDDING = {
    "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "class_embedder.embedding_table.weight",
}


def is_dit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of an original DiT."""
    return _MARK in tensors and "y_embedder.embedding_table.weight" in tensors


def config_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of the diffusers model, from the shapes alone.

    The number of heads is in no shape: the published sizes have 16 in width 1152 (XL), and heads of
    64 in all others (S, B, L).

    Raises:
        KeyError: a tensor is missing.
        ValueError: the width is none of these, or the grid of positions is not square.
    """
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    if width != 1152 and width % 64:
        raise ValueError(f"width {width} is neither 1152 nor a multiple of 64")
    heads = 16 if width == 1152 else width // 64
    outputs = tensors["final_layer.linear.weight"].shape[0] // patch**2
    side = math.isqrt(tensors["pos_embed"].shape[1])
    if side**2 != tensors["pos_embed"].shape[1]:
        raise ValueError("the grid of pos_embed is not square")
    return {
        "_class_name": "DiTTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": heads,
        "num_embeds_ada_norm": tensors["y_embedder.embedding_table.weight"].shape[0] - 1,
        "num_layers": len(_layers(tensors)),
        "out_channels": outputs,
        "patch_size": patch,
        "sample_size": side * patch,
    }


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DiT's tensors under their names in diffusers; views, not copies.

    Every block gets the one embedding of timestep and class; the fixed positions are left out.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has no place in diffusers.
    """
    rest = dict(tensors)
    rest.pop("pos_embed")
    result = {}
    for old, new in _ENDS.items():
        for part in ("weight", "bias"):
            result[f"{new}.{part}"] = rest.pop(f"{old}.{part}")
    embedding = {new: rest.pop(old) for old, new in _EMBEDDING.items()}
    for layer in _layers(tensors):
        block = f"transformer_blocks.{layer}."
        for name, tensor in embedding.items():
            result[f"{block}norm1.emb.{name}"] = tensor
        for part in ("weight", "bias"):
            qkv = rest.pop(f"blocks.{layer}.attn.qkv.{part}").chunk(3)
            for letter, tensor in zip("qkv", qkv, strict=True):
                result[f"{block}attn1.to_{letter}.{part}"] = tensor
            for old, new in _BLOCK.items():
                result[f"{block}{new}.{part}"] = rest.pop(f"blocks.{layer}.{old}.{part}")
    if rest:
        raise ValueError(f"tensor {min(rest)!r} has no place in diffusers' DiT")
    return result


def _layers(tensors: Mapping[str, Tensor]) -> list[int]:
    numbers = {int(m.group(1)) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))}
    return sorted(numbers)
