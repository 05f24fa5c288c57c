"""A random LLaMA-2-7B at true shapes, in shards: what streaming at scale is measured on.

    python benchmarks/zoo/random_llama.py out/ --layers 32

6.74 B weights, 13.5 GB in bfloat16. Weights are those of ``random_dit``: normal with log-normal
scales per row and per column. Written a block at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from zoo.random_dit import matrix  # benchmarks/zoo/random_dit.py

HIDDEN, INNER, VOCABULARY, HEADS = 4096, 11008, 32000, 32
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def config(layers: int) -> dict[str, object]:
    """``config.json`` of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def write(folder: Path, layers: int, seed: int = 0) -> None:
    """Write config, index and a shard per block."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(layers), indent=2) + "\n")
    index = {}
    for number, tensors in enumerate(shards(layers, seed), start=1):
        file = f"model-{number:05}-of-{layers + 2:05}.safetensors"
        stored = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
        save_file(stored, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(stored, file))
    weight_map = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))


def shards(layers: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """The embedding, block after block, then norm and head."""
    random = torch.Generator().manual_seed(seed)
    yield {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, random)}
    for number in range(layers):
        block = {
            f"{name}.weight": matrix(rows, cols, random) for name, (rows, cols) in LINEARS.items()
        }
        norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
        block |= dict.fromkeys(norms, torch.ones(HIDDEN))
        yield {f"model.layers.{number}.{name}": tensor for name, tensor in block.items()}
    yield {
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": matrix(VOCABULARY, HIDDEN, random),
    }


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32, help="32 is LLaMA-2-7B")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, options.layers, options.seed)


if __name__ == "__main__":
    main()
