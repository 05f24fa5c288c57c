"""The built-in LLaMA with the outliers of real models, put in by a transformation of its weights.

Large language models have a few hidden channels whose activations are far larger than the rest, and
a few single weights that are far heavier (LLM.int8, arXiv 2208.07339; super weights,
arXiv 2411.07191). A small trained model has neither, so that methods look harmless on it that ruin
a real model. Here the function stays the same, up to rounding.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpq_llama.source.checkpoint import BUILTIN

SOURCE = BUILTIN / "tiny-llama"

SCALES = (44.0, 48.0, 52.0, 56.0)
"""Factors of the outlier channels of each norm's output."""

HIDDEN_SCALE = 32.0
"""Factor of the outlier units inside of an MLP, and of the values of an attention head."""

HIDDEN_UNITS = 3
"""Number of such units in an MLP; of an attention, one channel per head of keys and values."""

HEAVY_UNITS = 8
"""Units that are added to an MLP, each with two heavy weights; the width stays divisible by 8."""

HEAVY = 20.0
"""Size of a heavy weight, over the root mean square of its matrix."""


def write_outlier_llama(folder: Path, seed: int = 0) -> Path:
    """Write the transformed model as a folder of float32 weights, and return the folder."""
    shutil.copytree(SOURCE, folder)
    config = json.loads((folder / "config.json").read_text())
    weights = {name: w.float() for name, w in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(seed)
    for layer in range(config["num_hidden_layers"]):
        names = f"model.layers.{layer}."
        block = {n.removeprefix(names): w for n, w in weights.items() if n.startswith(names)}
        _scale_norms(block, generator)
        _scale_values(block, config, generator)
        _scale_hidden_units(block, generator)
        _split_units(block, generator)
        weights |= {names + name: w.contiguous() for name, w in block.items()}
    config |= {"intermediate_size": config["intermediate_size"] + HEAVY_UNITS}
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _scale_norms(block: dict[str, Tensor], generator: torch.Generator) -> None:
    """Scale channels of the norms' outputs up, and the columns that read them down."""
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for norm, names in readers.items():
        gain = block[f"{norm}.weight"]
        channels = torch.randperm(len(gain), generator=generator)[: len(SCALES)]
        scales = torch.tensor(SCALES)
        gain[channels] *= scales
        for name in names:
            block[f"{name}.weight"][:, channels] /= scales


def _scale_values(
    block: dict[str, Tensor], config: dict[str, int], generator: torch.Generator
) -> None:
    """Scale one channel of every head of values up, and what reads it down."""
    width, heads = config["head_dim"], config["num_key_value_heads"]
    for head in range(heads):
        channel = int(torch.randint(width, (), generator=generator))
        block["self_attn.v_proj.weight"][head * width + channel] *= HIDDEN_SCALE
        readers = block["self_attn.o_proj.weight"].view(
            -1, heads, config["num_attention_heads"] // heads, width
        )
        readers[:, head, :, channel] /= HIDDEN_SCALE


def _scale_hidden_units(block: dict[str, Tensor], generator: torch.Generator) -> None:
    """Scale rows of ``up_proj`` up, and columns of ``down_proj`` down."""
    up, down = block["mlp.up_proj.weight"], block["mlp.down_proj.weight"]
    units = torch.randperm(len(up), generator=generator)[:HIDDEN_UNITS]
    up[units] *= HIDDEN_SCALE
    down[:, units] /= HIDDEN_SCALE


def _split_units(block: dict[str, Tensor], generator: torch.Generator) -> None:
    """Split units of the MLP in two that add up to the old one, with one heavy weight in each.

    Both have the gate and the column of ``down_proj`` of the old unit; the rows of ``up_proj`` are
    ``u + h e`` and ``-h e``, with a unit vector ``e``.
    """
    up, gate, down = (block[f"mlp.{name}_proj.weight"] for name in ("up", "gate", "down"))
    units = torch.randperm(len(up), generator=generator)[:HEAVY_UNITS]
    columns = torch.randint(up.shape[1], (HEAVY_UNITS,), generator=generator)
    heavy = torch.zeros(HEAVY_UNITS, up.shape[1])
    heavy[torch.arange(HEAVY_UNITS), columns] = HEAVY * float(up.square().mean().sqrt())
    up[units] += heavy
    block["mlp.up_proj.weight"] = torch.cat([up, -heavy])
    block["mlp.gate_proj.weight"] = torch.cat([gate, gate[units]])
    block["mlp.down_proj.weight"] = torch.cat([down, down[:, units]], 1)
