"""Tiny random decoder-only language models of many architectures, made from their configs."""

from __future__ import annotations

from pathlib import Path

import torch

VOCABULARY = 128

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

_NARROW_HEADS = {"head_dim": 8}

_LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}

_EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 32,
}

DECODERS: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {}),
    "llama3": (
        "LlamaConfig",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
        },
    ),
    "mistral": ("MistralConfig", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", _NARROW_HEADS),
    "qwen3_moe": ("Qwen3MoeConfig", {**_NARROW_HEADS, **_EXPERTS, "num_experts": 4}),
    "gemma2": ("Gemma2Config", _NARROW_HEADS),
    "gemma3": ("Gemma3TextConfig", _NARROW_HEADS),
    "phi3": ("Phi3Config", {}),
    "smollm3": ("SmolLM3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {}),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "falcon": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_LATENT_ATTENTION,
            **_EXPERTS,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "llava": ("LlavaConfig", {}),
    "bloom": ("BloomConfig", {}),
    "mpt": ("MptConfig", {"n_layers": 2, "n_heads": 4, "d_model": 32, "max_seq_len": 64}),
    "mamba": ("MambaConfig", {"state_size": 8}),
}
"""Name -> class of the config, and what it has besides the common sizes."""


def decoder_config(name: str):
    """A small config of an architecture."""
    import transformers

    kind, changes = DECODERS[name]
    if name == "llava":
        return transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**_SIZES),
            vision_config=transformers.CLIPVisionConfig(**_VISION),
            image_token_index=VOCABULARY - 1,
        )
    return getattr(transformers, kind)(**{**_SIZES, **changes})


def decoder_class(name: str):
    """The Auto class by which users load an architecture."""
    import transformers

    return getattr(
        transformers, "AutoModelForImageTextToText" if name == "llava" else "AutoModelForCausalLM"
    )


def save_decoder(name: str, folder: Path, **options) -> None:
    """Write a random model of an architecture, all of whose weights matter for its outputs."""
    torch.manual_seed(0)
    model = decoder_class(name).from_config(decoder_config(name))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):  # zeros at first, which would hide a lost bias
                parameter.normal_(std=0.1)
            elif parameter.ndim >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder, **options)
