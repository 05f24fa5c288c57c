"""The Llama architecture: its tensors, which are compressed and how, and its hidden units."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dpq_core.spec import Override, QuantSpec
from dpq_core.tensor.hidden_axes import HiddenAxis, Producer
from dpq_core.tensor.partition import Layout

BASE_PREFIX = "model."
"""Prefix of the decoder's tensors in a model with a head; a bare LlamaModel has none."""

_LINEAR = re.compile(
    r"(model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
    r"|lm_head\.weight"
)
_DEFAULTS = {
    "vocab_size": 32000,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
}
"""transformers' values for sizes that a config leaves out."""

_MAX_SIZE = 1 << 24

_DOWN = re.compile(r"((?:model\.)?layers\.\d+\.mlp\.)down_proj\.weight")
_EMBEDDING = re.compile(r"(model\.)?embed_tokens\.weight")


def layout_of(name: str, shape: tuple[int, ...]) -> Layout | None:
    """The layout by which a tensor is compressed; None keeps it (norms, biases, other heads)."""
    if len(shape) != 2 or 0 in shape:
        return None
    if _LINEAR.fullmatch(name):
        return Layout.LINEAR
    return Layout.EMBEDDING if _EMBEDDING.fullmatch(name) else None


def has_head(config: Mapping[str, Any]) -> bool:
    """Whether the model has a language-model head, its own or the tied embedding."""
    architectures = config.get("architectures") or ["LlamaForCausalLM"]
    return any(str(name).endswith("ForCausalLM") for name in architectures)


def expected_tensors(config: Mapping[str, Any], *, prefix: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that ``LlamaForCausalLM`` of transformers reads.

    Args:
        config: content of the ``config.json``.
        prefix: of the decoder's tensors, ``BASE_PREFIX`` or nothing.

    Raises:
        ValueError: a size is not a positive integer.
    """
    vocabulary, layers, hidden, inner, heads = (
        _size(config, name, default) for name, default in _DEFAULTS.items()
    )
    kv_heads = _size(config, "num_key_value_heads", heads)
    head = _size(config, "head_dim", hidden // heads)
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embed_tokens.weight": (vocabulary, hidden),
        f"{prefix}norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    linears = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (kv_heads * head, hidden),
        "self_attn.v_proj": (kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(layers):
        block = f"{prefix}layers.{layer}."
        shapes[f"{block}input_layernorm.weight"] = (hidden,)
        shapes[f"{block}post_attention_layernorm.weight"] = (hidden,)
        for name, shape in linears.items():
            shapes[f"{block}{name}.weight"] = shape
            if config.get("mlp_bias" if name.startswith("mlp.") else "attention_bias", False):
                shapes[f"{block}{name}.bias"] = shape[:1]
    return shapes


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= _MAX_SIZE:
        raise ValueError(f"{name} is {value!r}")
    return value


def policy(spec: QuantSpec) -> tuple[Override, ...]:
    """Rules that give the embedding and the head at least 4 bits per weight.

    They are a small part of a large model, and a lookup has no other weights to average out its
    error (measured on builtin:tiny-llama; docs/llama.md).
    """
    if spec.code_bits / spec.d >= 4:
        return ()
    changes = {"d": 2, "K": 256}
    return (Override("*embed_tokens.weight", changes), Override("lm_head.weight", changes))


def hidden_axes(names: Collection[str]) -> Iterator[HiddenAxis]:
    """The inner units of each MLP, ``down(silu(gate(x)) * up(x))``, whose order is free.

    The columns of ``o_proj`` are left out: they could only change places within their heads, and a
    permutation over all of them, stored, lowers its error by more.

    Args:
        names: names of the checkpoint's tensors.
    """
    for match in map(_DOWN.fullmatch, names):
        if match:
            inner = [f"{match[1]}{layer}_proj" for layer in ("gate", "up")]
            weights = [f"{path}.weight" for path in inner]
            biases = [f"{path}.bias" for path in inner if f"{path}.bias" in names]
            yield HiddenAxis(consumer=match[0], producers=tuple(map(Producer, [*weights, *biases])))
