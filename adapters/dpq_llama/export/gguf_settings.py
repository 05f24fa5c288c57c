"""Architecture and settings of a model, as GGUF writes them.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Refused here are
settings that llama.cpp does not read, and would compute otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpq_core.errors import SourceError
from dpq_llama.source.architecture import typed_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""``model_type`` of transformers -> architecture of llama.cpp that computes the same function."""


@dataclass(frozen=True)
class GGUFSettings:
    """The settings of a model in a GGUF file: all in it but tensors and tokenizer.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        values: settings by key, without the prefix of the architecture.
        heads: numbers of query heads and of key heads whose rows llama.cpp has in another order
            (see ``interleave``); None where it has them in the order of transformers.
        layers: number of blocks.
        vocabulary: number of rows of the embedding.
        rope_factors: float32 ``[head_dim / 2]``, by which the wavelengths of the rotations are
            multiplied; None for none.
        notes: lines on what llama.cpp does otherwise.
    """

    architecture: str
    values: Mapping[str, int | float | str]
    heads: tuple[int, int] | None
    layers: int
    vocabulary: int
    rope_factors: NDArray[np.float32] | None
    notes: tuple[str, ...]


def gguf_settings(json_config: Mapping[str, Any], where: str) -> GGUFSettings:
    """The settings of a model with the given ``config.json``.

    Args:
        json_config: content of the file.
        where: what errors call the model.

    Raises:
        SourceError: llama.cpp does not compute this model, or dpq does not know how it would.
    """
    model_type = str(json_config.get("model_type"))
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise SourceError(
            f"{where}: a GGUF file of a model of type {model_type!r} cannot be written (these can: "
            f"{known}); export it with the format hf and use llama.cpp's convert_hf_to_gguf.py"
        )
    names = json_config.get("architectures") or ["ForCausalLM"]
    if not any(str(name).endswith("ForCausalLM") for name in names):
        raise SourceError(f"{where}: no language-model head, so llama.cpp cannot run it")
    config: Any = typed_config(json_config, Path(where))
    rope: dict[str, Any] = config.rope_parameters
    _check_function(config, rope, where)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    architecture = ARCHITECTURES[model_type]
    heads = (config.num_attention_heads, config.num_key_value_heads)
    return GGUFSettings(
        architecture=architecture,
        values=values | _rope_scaling(rope, config.max_position_embeddings, where),
        heads=heads if architecture == "llama" else None,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        rope_factors=_rope_factors(config, rope),
        notes=_window_notes(config),
    )


def _check_function(config: Any, rope: Mapping[str, Any], where: str) -> None:
    """Refuse settings that llama.cpp does not read and would compute otherwise."""
    if config.hidden_act not in ("silu", "swish"):
        activation = config.hidden_act
        raise SourceError(f"{where}: llama.cpp computes silu in this model, not {activation!r}")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise SourceError(f"{where}: rotates a part of each head only, which is not supported")


def _rope_scaling(rope: Mapping[str, Any], context: int, where: str) -> dict[str, Any]:
    """The settings of scaled rotary embeddings; those of ``llama3`` are factors in a tensor."""
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    plain = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    extra = sorted(k for k, v in rope.items() if k not in plain and v is not None)
    if kind == "yarn" and not extra:
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(
                rope.get("original_max_position_embeddings") or context
            ),
        }
    settings = f" with {', '.join(extra)}" if kind == "yarn" else ""
    raise SourceError(f"{where}: rotary embeddings of type {kind!r}{settings} are not supported")


def _rope_factors(config: Any, rope: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """The factors of ``llama3``: plain frequencies over the frequencies that the model uses."""
    if rope.get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    used, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    exponents = torch.arange(len(used), dtype=torch.float32) / len(used)
    factors: NDArray[np.float32] = (rope["rope_theta"] ** -exponents / used).numpy()
    return factors


def _window_notes(config: Any) -> tuple[str, ...]:
    """A note where the model attends to a window of the text only."""
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in kinds or (window and config.model_type == "mistral")
    if not sliding or not window or window >= config.max_position_embeddings:
        return ()
    return (f"the model attends to {window} tokens before each; llama.cpp to all of them",)


def interleave(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of query or key weights for llama.cpp's rotary embedding.

    transformers rotates row i of a head together with row i + head_dim / 2, llama.cpp rows 2i and
    2i + 1 (in the architecture ``llama``; others are as in transformers).

    Args:
        rows: weight ``[heads * head_dim, C]`` or bias ``[heads * head_dim]``.
        heads: number of heads.
    """
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
