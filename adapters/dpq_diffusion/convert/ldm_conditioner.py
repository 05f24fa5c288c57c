"""Conversion of an LDM's conditioner to a class table, ``LDMBertModel`` or ``CLIPTextModel``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpq_diffusion.convert.conversion import ConvertedComponent
from dpq_diffusion.convert.ldm_unet import CLASS_TABLE

_TEXT = "cond_stage_model.transformer."
_BERT = f"{_TEXT}token_emb.weight"
_CLIP = f"{_TEXT}text_model.embeddings.token_embedding.weight"
_CLIP_LAYER = f"{_TEXT}text_model.encoder.layers.0."

_HEADS = 8
"""Number of heads in the published LDM text-to-image model, 64 wide each whatever the width."""

_BERT_ENDS = {
    "token_emb": "model.embed_tokens",
    "pos_emb.emb": "model.embed_positions",
    "norm": "model.layer_norm",
    "to_logits": "to_logits",
}
_BERT_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_BERT_LAYER = re.compile(r"attn_layers\.layers\.(\d+)\.(0|1)\.(.+)")


def conditioner_of(tensors: Mapping[str, Tensor]) -> tuple[str, ConvertedComponent] | None:
    """The name and content of the component that turns a condition into the UNet's context.

    None where the conditioner is of another kind, or the model has none.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has no place in diffusers or transformers.
    """
    if CLASS_TABLE in tensors:
        return "class_embedder", _class_table(tensors[CLASS_TABLE])
    own = {n.removeprefix(_TEXT): t for n, t in tensors.items() if n.startswith(_TEXT)}
    if _BERT in tensors:
        return "bert", _bert(own)
    if _CLIP in tensors:
        return "text_encoder", _clip(own, tensors[f"{_CLIP_LAYER}mlp.fc1.weight"].shape[0])
    return None


def null_class(rows: int) -> int | None:
    """The last row of a class table, where it stands for "no class".

    Nothing in a checkpoint says so. Numbers of classes are round and the null class is one more:
    1001 rows in cin256-v2, 1000 in models that were trained without it.
    """
    return rows - 1 if rows % 10 == 1 else None


def _class_table(table: Tensor) -> ConvertedComponent:
    rows, width = table.shape
    return ConvertedComponent(
        config={"_class_name": "ClassEmbedder", "num_embeddings": rows, "embedding_dim": width},
        weights={"class_embedding.weight": table},
        library="dpq_diffusion.class_pipelines",
    )


def _bert(own: Mapping[str, Tensor]) -> ConvertedComponent:
    words, width = own["token_emb.weight"].shape
    layers = {int(m[1]) for n in own if (m := _BERT_LAYER.fullmatch(n))}
    config: dict[str, Any] = {
        "architectures": ["LDMBertModel"],
        "d_model": width,
        "encoder_attention_heads": _HEADS,
        "encoder_ffn_dim": own["attn_layers.layers.1.1.net.2.weight"].shape[1],
        "encoder_layers": len(layers) // 2,
        "head_dim": own["attn_layers.layers.0.1.to_q.weight"].shape[0] // _HEADS,
        "max_position_embeddings": own["pos_emb.emb.weight"].shape[0],
        "model_type": "ldmbert",
        "vocab_size": words,
    }
    weights = {_bert_name(name): tensor for name, tensor in own.items()}
    return ConvertedComponent(
        config=config, weights=weights, library="latent_diffusion", kind="LDMBertModel"
    )


def _bert_name(name: str) -> str:
    """The diffusers name of a text encoder's tensor.

    Layers alternate between attention and feed-forward; each is a norm (0) and a block (1).
    """
    if match := _BERT_LAYER.fullmatch(name):
        number, part, rest = int(match[1]), match[2], match[3]
        layer, attention = f"model.layers.{number // 2}.", number % 2 == 0
        if part == "0":
            return f"{layer}{'self_attn_layer_norm' if attention else 'final_layer_norm'}.{rest}"
        if attention:
            block, _, kind = rest.partition(".")
            return f"{layer}self_attn.{_BERT_ATTENTION[block]}.{kind}"
        return layer + rest.replace("net.0.0.", "fc1.").replace("net.2.", "fc2.")
    path, _, kind = name.rpartition(".")
    if path not in _BERT_ENDS:
        raise ValueError(f"tensor {name!r} of the text encoder has no place in diffusers")
    return f"{_BERT_ENDS[path]}.{kind}"


def _clip(own: Mapping[str, Tensor], inner: int) -> ConvertedComponent:
    words, width = own["text_model.embeddings.token_embedding.weight"].shape
    layer = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
    config: dict[str, Any] = {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "intermediate_size": inner,
        "max_position_embeddings": own["text_model.embeddings.position_embedding.weight"].shape[0],
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, width // 64),
        "num_hidden_layers": len({m[1] for n in own if (m := layer.match(n))}),
        "vocab_size": words,
    }
    weights = {n: t for n, t in own.items() if not n.endswith("position_ids")}  # 0, 1, 2, ...
    return ConvertedComponent(
        config=config, weights=weights, library="transformers", kind="CLIPTextModel"
    )
