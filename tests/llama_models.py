"""Sizes of tiny Llama models, one for each way in which Llamas differ."""

from __future__ import annotations

SHAPES = {
    "plain": {},
    "gqa-tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    # No width is a multiple of 4, and the heads are wider than hidden / heads.
    "odd": {"hidden_size": 90, "num_attention_heads": 6, "head_dim": 22, "intermediate_size": 203},
    "odd-tied": {"hidden_size": 90, "num_attention_heads": 5, "tie_word_embeddings": True},
}


def llama_config(**changes):
    """A small LlamaConfig."""
    from transformers import LlamaConfig

    small = {
        "vocab_size": 211,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return LlamaConfig(**{**small, **changes})
