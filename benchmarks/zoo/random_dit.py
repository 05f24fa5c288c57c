"""A random DiT at true shapes, in the layout of diffusers: what speed and memory are measured on.

    python benchmarks/zoo/random_dit.py out/ --dtype float16

Names and shapes are those of ``facebook/DiT-XL-2-256``: 28 blocks of width 1152, 675 M parameters
without the copies of the embedders that diffusers stores in every block (equal here, as there).
Weights are normal with log-normal scales per row and per column, which is what makes trained
matrices harder than white noise; the model itself draws noise. Written a block at a time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, BLOCKS, HEADS, CLASSES = 1152, 28, 16, 1000
SCALE_SPREAD = 0.35
"""Standard deviation of the logarithm of the row and column scales."""

CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    "_diffusers_version": "0.42.1",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": WIDTH // HEADS,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": HEADS,
    "num_embeds_ada_norm": CLASSES,
    "num_layers": BLOCKS,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
}
STEM = "diffusion_pytorch_model"

EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": (WIDTH, 256),
    "norm1.emb.timestep_embedder.linear_2": (WIDTH, WIDTH),
}
TABLE = "norm1.emb.class_embedder.embedding_table.weight"
LINEARS = {
    "norm1.linear": (6 * WIDTH, WIDTH),
    "attn1.to_q": (WIDTH, WIDTH),
    "attn1.to_k": (WIDTH, WIDTH),
    "attn1.to_v": (WIDTH, WIDTH),
    "attn1.to_out.0": (WIDTH, WIDTH),
    "ff.net.0.proj": (4 * WIDTH, WIDTH),
    "ff.net.2": (WIDTH, 4 * WIDTH),
}
ENDS = {"proj_out_1": (2 * WIDTH, WIDTH), "proj_out_2": (32, WIDTH)}


def write(folder: Path, dtype: torch.dtype, seed: int = 0) -> None:
    """Write the config and a shard per block, which diffusers opens as one component."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    index = {}
    for number, tensors in enumerate(shards(seed), start=1):
        file = f"{STEM}-{number:05}-of-{BLOCKS + 1:05}.safetensors"
        stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        save_file(stored, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(stored, file))
    weight_map = {"metadata": {}, "weight_map": index}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(weight_map))


def shards(seed: int) -> Iterator[dict[str, Tensor]]:
    """The layers at either end, then block after block with its copy of the embedders."""
    random = torch.Generator().manual_seed(seed)
    embedders = {**layers(EMBEDDERS, random), TABLE: matrix(CLASSES + 1, WIDTH, random)}
    patches = {
        "pos_embed.proj.weight": matrix(WIDTH, 16, random).view(WIDTH, 4, 2, 2),
        "pos_embed.proj.bias": torch.zeros(WIDTH),
    }
    yield patches | layers(ENDS, random)
    for number in range(BLOCKS):
        block = embedders | layers(LINEARS, random)
        yield {f"transformer_blocks.{number}.{name}": tensor for name, tensor in block.items()}


def layers(shapes: dict[str, tuple[int, int]], random: torch.Generator) -> dict[str, Tensor]:
    """Weight and (zero) bias of each layer."""
    tensors = {}
    for name, (rows, cols) in shapes.items():
        tensors[f"{name}.weight"] = matrix(rows, cols, random)
        tensors[f"{name}.bias"] = torch.zeros(rows)
    return tensors


def matrix(rows: int, cols: int, random: torch.Generator) -> Tensor:
    """Normal weights of variance about 1 / cols with log-normal row and column scales."""
    row = torch.exp(SCALE_SPREAD * torch.randn(rows, 1, generator=random))
    col = torch.exp(SCALE_SPREAD * torch.randn(1, cols, generator=random))
    return torch.randn(rows, cols, generator=random) * row * col / math.sqrt(cols)


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, getattr(torch, options.dtype), options.seed)


if __name__ == "__main__":
    main()
