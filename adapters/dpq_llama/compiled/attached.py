"""A transformers model whose plain calls of ``generate`` decode by the compiled step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_llama.compiled.decoder import CompiledDecoder
from dpq_llama.source.architecture import longest_context

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_UNDERSTOOD = frozenset(
    {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "max_new_tokens",
        "max_length",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "use_cache",
        "transformers_version",
        "_from_model_config",
    }
)
"""Fields of a generation config that the compiled step obeys, or that change no token."""

_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "typical_p": 1.0,
    "remove_invalid_values": False,
}
"""Values of further fields that change no token, beside those that are not set."""

_USUAL_TOP_K = 50  # of transformers, where a config that samples sets none


def attach(model: PreTrainedModel) -> None:
    """Let ``model.generate`` decode one prompt at a time by the compiled step.

    Calls that ask for more (beams, penalties, stop strings, several prompts, arguments of their
    own) go to transformers as before.

    Raises:
        AdapterError: the compiled step cannot run the model; the message says why.
    """
    decoder = CompiledDecoder(model)
    usual: Any = model.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        if not _is_plain(decoder, arguments, options):
            return usual(*arguments, **options)
        config = options["generation_config"]
        return _generated(decoder, options["input_ids"], config, options.get("streamer"))

    model.generate = generate  # type: ignore[assignment]  # of this model only


def _is_plain(decoder: CompiledDecoder, arguments: tuple[Any, ...], options: Any) -> bool:
    """Whether a call of ``generate`` asks for nothing but what the compiled step does."""
    taken = {"input_ids", "attention_mask", "generation_config", "streamer", "tokenizer"}
    config = options.get("generation_config")
    ids, mask = options.get("input_ids"), options.get("attention_mask")
    if arguments or config is None or not isinstance(ids, Tensor) or set(options) - taken:
        return False
    values = config.to_dict()
    asked = [n for n, v in values.items() if v and n not in _UNDERSTOOD and v != _NEUTRAL.get(n)]
    new = config.max_new_tokens
    room = longest_context(decoder.model.config) - ids.shape[1]
    return (
        not asked
        and ids.ndim == 2
        and len(ids) == 1
        and (mask is None or bool(mask.all()))
        and new is not None
        and ids.shape[1] > 0
        and 0 < new <= room
        and config.use_cache is not False
    )


def _generated(
    decoder: CompiledDecoder, ids: Tensor, config: GenerationConfig, streamer: Any
) -> Tensor:
    """Ids ``[1, n + new]`` of a prompt and its continuation; torch's generator gives the seed."""
    draws: dict[str, Any] = {}
    if config.do_sample:
        draws = {
            "temperature": 1.0 if config.temperature is None else config.temperature,
            "top_k": _USUAL_TOP_K if config.top_k is None else config.top_k,
            "top_p": 1.0 if config.top_p is None else config.top_p,
            "seed": int(torch.randint(1 << 62, (1,))),
        }
    ends = [] if config.eos_token_id is None else config.eos_token_id
    return decoder.generate(
        ids,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=ends,
        streamer=streamer,
        **draws,
    )
