"""CompVis LDM -> ``UNet2DConditionModel`` of diffusers: config from the tensors, then names.

For UNets with spatial transformers: LDM text-to-image, class-conditional cin256-v2, and Stable
Diffusion 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

PREFIX = "model.diffusion_model."

_CLASS_TABLE = "cond_stage_model.embedding.weight"
"""The class embedding of cin256-v2; its UNet has one head, those that read text have eight."""

_CONTEXT = "transformer_blocks.0.attn2.to_k.weight"


def is_ldm(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of an LDM whose UNet has spatial transformers."""
    return any(name.startswith(PREFIX) and name.endswith(_CONTEXT) for name in tensors)


def config_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of the diffusers UNet, from names and shapes.

    The number of heads is in no tensor: 1 where the condition is a class table, else 8, as in the
    published models.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the blocks are not arranged as in the published models.
    """
    unet = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    widths, attended, depth = _levels(unet)
    context = next(tensor for name, tensor in unet.items() if name.endswith(_CONTEXT))
    down = ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attended]
    up = ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attended)]
    linear = next(t for n, t in unet.items() if n.endswith("1.proj_in.weight")).ndim == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": 1 if _CLASS_TABLE in tensors else 8,
        "block_out_channels": widths,
        "cross_attention_dim": context.shape[1],
        "down_block_types": down,
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "layers_per_block": depth,
        "out_channels": unet["out.2.weight"].shape[0],
        "sample_size": 64 if _CLASS_TABLE in tensors else 32,
        "up_block_types": up,
        "use_linear_projection": linear,
    }


def _levels(unet: Mapping[str, Tensor]) -> tuple[list[int], list[bool], int]:
    """Width and presence of attention per resolution, and residual blocks per resolution."""
    widths: list[int] = []
    attended: list[bool] = []
    counts = [0]
    blocks = {int(m.group(1)) for n in unet if (m := re.match(r"input_blocks\.(\d+)\.", n))}
    for block in range(1, len(blocks)):
        if f"input_blocks.{block}.0.op.weight" in unet:
            counts.append(0)
            continue
        if counts[-1] == 0:
            widths.append(unet[f"input_blocks.{block}.0.out_layers.3.weight"].shape[0])
            attended.append(f"input_blocks.{block}.1.norm.weight" in unet)
        counts[-1] += 1
    if not widths or len(set(counts)) > 1:
        raise ValueError("the residual blocks of the UNet are not the same at every resolution")
    return widths, attended, counts[0]


def rename(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The UNet's tensors under their names in diffusers, by diffusers' own conversion.

    Where the file holds averaged weights (``model_ema``), these are taken.

    Raises:
        ValueError: a tensor has no place in diffusers.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    count = sum(name.startswith(PREFIX) for name in tensors)
    result: dict[str, Tensor] = convert_ldm_unet_checkpoint(  # type: ignore[no-untyped-call]
        dict(tensors), dict(config), extract_ema=True
    )
    if len(result) != count or any(value is None for value in result.values()):
        raise ValueError("some tensors of the UNet have no place in diffusers")
    return result
