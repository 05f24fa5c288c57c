"""Architecture: the model that a ``config.json`` describes, as transformers builds it.

The model is built on the meta device: its modules, names and shapes are real, its weights are not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dpq_core.errors import SourceError, SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MAX_LAYERS = 10_000

_USUAL_CONTEXT = 2048

_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the names of classes that have a language-model head."""


def has_head(config: Mapping[str, Any]) -> bool:
    """Whether the model has a language-model head, its own or the tied embedding."""
    architectures = config.get("architectures") or ["ForCausalLM"]
    return any(str(name).endswith(_HEADS) for name in architectures)


def typed_config(config: Mapping[str, Any], where: Path) -> PreTrainedConfig:
    """The config of transformers that a ``config.json`` describes.

    Args:
        config: content of the file.
        where: the file, for errors.

    Raises:
        SourceError: transformers does not know this kind of model, or a value is not valid.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise SourceError(
            f"{where}: model_type is {kind!r}, which transformers {transformers.__version__} does "
            "not know; code of the model's own is not run"
        )
    try:
        decode = transformers.PreTrainedConfig._decode_special_floats  # infinity, as JSON has it
        typed: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(decode(dict(config)))
    except Exception as error:  # every config checks its values in its own way
        raise SourceError(f"{where}: not a valid {kind} config ({_one_line(error)})") from None
    return typed


def longest_context(config: PreTrainedConfig) -> int:
    """Tokens that a model can read at once; 2048 where its positions have no limit."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) else _USUAL_CONTEXT


def room_after(config: PreTrainedConfig, tokens: int) -> int:
    """Number of tokens that fit a model's context after a prompt of ``tokens`` tokens.

    Raises:
        SpecError: there is no room, or no prompt.
    """
    longest = longest_context(config)
    if not 0 < tokens < longest:
        raise SpecError(f"has {tokens} tokens; the model takes 1 to {longest - 1}", option="prompt")
    return longest - tokens


def logits_function(
    model: PreTrainedModel, other_head: nn.Module | None = None
) -> Callable[[Tensor], Tensor]:
    """The function from last hidden states ``[n, hidden]`` to logits ``[n, vocabulary]``.

    It is the head, then what some architectures do to its outputs: they are divided (Granite),
    multiplied (Cohere), or bounded by a tanh (Gemma 2).

    Args:
        model: with a language-model head.
        other_head: a head to use in place of the model's.
    """
    head: nn.Module = model.get_output_embeddings() if other_head is None else other_head  # type: ignore[no-untyped-call]
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    factor /= getattr(config, "logits_scaling", None) or 1.0
    bound = getattr(config, "final_logit_softcapping", None)

    def logits(hidden: Tensor) -> Tensor:
        outputs: Tensor = head(hidden)
        if factor != 1:
            outputs = outputs * factor
        return torch.tanh(outputs / bound) * bound if bound else outputs

    return logits


def loadable_class(config: Mapping[str, Any], where: Path, *, head: bool) -> Any:
    """The class of transformers by which the model in a folder is loaded.

    Args:
        config: content of its ``config.json``.
        where: the file, for errors.
        head: the model with its language-model head; False for the decoder alone.

    Raises:
        SourceError: the config is not valid, or not of a decoder-only language model.
    """
    return model_class(typed_config(config, where), str(where), head=head)


def model_class(config: PreTrainedConfig, where: str, *, head: bool = True) -> Any:
    """The class of transformers for a decoder-only model.

    Args:
        config: of the model.
        where: the model, for errors.
        head: the model with its language-model head; False for the decoder alone.

    Raises:
        SourceError: the model is not a decoder-only language model.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_MAPPING,
    )

    kind = type(config)
    tables = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    table = next((table for table in tables if kind in table), None)
    may_decode = getattr(config, "is_decoder", True)
    is_encoder = hasattr(config, "add_cross_attention") and not may_decode  # as BERT
    if table is None or config.is_encoder_decoder or is_encoder:
        raise SourceError(f"{where}: {config.model_type} is not a decoder-only language model")
    return table[kind] if head else MODEL_MAPPING[kind]


def stored_class(config: PreTrainedConfig, where: str) -> Any:
    """The class of a checkpoint: that which its config names, else the one with a head.

    A checkpoint of a class for another task (sequence classification) has that task's head.

    Raises:
        SourceError: the model is not a decoder-only language model.
    """
    import transformers

    usual = model_class(config, where)
    for name in config.architectures or ():
        named = getattr(transformers, str(name), None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named if named.config_class is type(config) else usual
    return usual


def meta_model(config: Mapping[str, Any], where: Path) -> PreTrainedModel:
    """The model of a ``config.json`` on the meta device; the same one for the same config.

    Raises:
        SourceError: the config is not valid, or not of a decoder-only language model.
    """
    return _meta_model(json.dumps(config, sort_keys=True), where)


@functools.lru_cache(maxsize=2)
def _meta_model(text: str, where: Path) -> PreTrainedModel:
    config = typed_config(json.loads(text), where)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or not 0 < layers <= _MAX_LAYERS:
        raise SourceError(f"{where}: not a valid config (num_hidden_layers is {layers!r})")
    built = stored_class(config, str(where))
    try:
        with torch.device("meta"):
            model: PreTrainedModel = built(config)
    except Exception as error:  # sizes that do not fit each other fail anywhere in the model
        raise SourceError(f"{where}: not a valid config ({_one_line(error)})") from None
    return model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
