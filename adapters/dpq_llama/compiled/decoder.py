"""CompiledDecoder: a language model of transformers whose tokens are decoded by compiled code."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpq_core.errors import AdapterError, SpecError
from dpq_llama.compiled import products, step
from dpq_llama.compiled.sampling import choose
from dpq_llama.compiled.weights import WeightTable, unsuitable
from dpq_llama.source.architecture import room_after
from dpq_llama.source.loading import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of ``model_type`` whose decoders the compiled step knows."""

_ACTIVATIONS = {
    "SiLUActivation": step.SILU,
    "SiLU": step.SILU,
    "GELUActivation": step.GELU,
    "GELUTanh": step.GELU_TANH,
    "PytorchGELUTanh": step.GELU_TANH,
}
"""Activations of an MLP by the class of the module that computes them."""

_STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embeddings whose frequencies are those of every length."""

_EVERYTHING = 1 << 62  # a window without end
_FIRST_CAPACITY = 256


def why_not(model: PreTrainedModel) -> str:
    """Why the compiled step cannot run a model, in a few words; empty where it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"the model is of the family {config.model_type}, not {', '.join(FAMILIES)}"
    if _activation_of(model) not in _ACTIVATIONS:
        return f"the activation of the MLP is {_activation_of(model)}"
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in _STATIC_ROTATIONS:
        return f"the rotary embedding is of the kind {kind}"
    return next((reason for layer in _layers_of(model) if (reason := unsuitable(layer))), "")


def load_compiled(source: str) -> Any:
    """A ``CompiledDecoder`` of a source; after a warning that says why, a transformers model.

    Raises:
        SourceError: there is no such source, or the model is not a decoder-only language model.
        ArtifactError: the artifact is damaged.
    """
    model = load_model(source, "cpu")
    reason = why_not(model)
    if reason:
        warnings.warn(f"{source} runs on transformers: {reason}", stacklevel=2)
        return model
    return CompiledDecoder(model)


def _activation_of(model: Any) -> str:
    """Class of the module that computes the activation of the MLPs."""
    return type(model.model.layers[0].mlp.act_fn).__name__


def _layers_of(model: Any) -> Iterator[Any]:
    """Embedding, head, then q, k, v, o, gate, up and down of every block."""
    yield model.get_input_embeddings()
    yield model.get_output_embeddings()
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


class CompiledDecoder:
    """A loaded model that reads prompts through transformers and decodes by the compiled step.

    Activations and the cache of keys and values are float32. Texts never depend on the number of
    threads, which is torch's. Calls from several threads take turns.

    Attributes:
        model: the model of transformers, whose weights are shared.
        logits: of the last step, float32 ``[V]``; the next step overwrites them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model on the CPU.

        Raises:
            AdapterError: the compiled step cannot run it; the message says why.
        """
        reason = why_not(model)
        if reason:
            raise AdapterError(f"the compiled engine cannot run this model: {reason}")
        loaded: Any = model
        self.model = loaded.eval()
        config = model.config
        blocks = self.model.model.layers
        self._weights = WeightTable()
        for layer in _layers_of(model):
            self._weights.add(layer)
        attention = blocks[0].self_attn
        has_qk_norms = hasattr(attention, "q_norm")
        rotary = self.model.model.rotary_emb
        self._shape = step.Shape(
            layers=len(blocks),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            activation=_ACTIVATIONS[_activation_of(model)],
            qk_norms=has_qk_norms,
            eps=float(config.rms_norm_eps),
            rope_scale=float(rotary.attention_scaling),
        )
        norms = [n for b in blocks for n in (b.input_layernorm, b.post_attention_layernorm)]
        norms.append(self.model.model.norm)
        head_norms = np.zeros((1, 2, 1), np.float32)
        if has_qk_norms:
            pairs = [(b.self_attn.q_norm.weight, b.self_attn.k_norm.weight) for b in blocks]
            head_norms = np.stack([_floats(pair) for pair in pairs])
        self._constants = (
            self._weights.table(),
            _floats([n.weight for n in norms]),
            head_norms,
            np.array([_window(b.self_attn, config) for b in blocks], np.int64),
            rotary.inv_freq.detach().float().numpy().copy(),
        )
        self._work = self._weights.work(self._shape.heads * self._shape.head_dim)
        self._keys: Any = np.empty((0, 0, 0, 0), np.float32)
        self._values = self._keys
        self._length = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_size = 0
        self.logits = self._work.logits[0, 0, : self._constants[0][1, products.ROWS]]

    def generate(
        self,
        input_ids: Tensor | Sequence[int],
        *,
        max_new_tokens: int = 128,
        streamer: Any = None,
        **options: Any,
    ) -> Tensor:
        """Ids int64 ``[1, n + new]`` of a prompt and its continuation.

        Args:
            input_ids: ids of one prompt, int64 ``[1, n]`` or ``[n]``.
            max_new_tokens: tokens to generate at most.
            streamer: a streamer of transformers, which gets the prompt and then every new token.
            options: see ``stream``.

        Raises:
            SpecError: see ``stream``.
        """
        prompt = _prompt(input_ids)
        new: list[int] = []
        with closing(self.stream(prompt, max_new_tokens=max_new_tokens, **options)) as tokens:
            if streamer is not None:
                streamer.put(prompt)
            for token in tokens:  # a streamer may end this early
                new.append(token)
                if streamer is not None:
                    streamer.put(torch.tensor([token]))
        if streamer is not None:
            streamer.end()
        return torch.cat([prompt, torch.tensor([new], dtype=torch.int64)], dim=1)

    def stream(
        self,
        input_ids: Tensor | Sequence[int],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> Generator[int, None, None]:
        """Yield the ids that continue a prompt, the end token included.

        Args:
            input_ids: ids of one prompt, int64 ``[1, n]`` or ``[n]``.
            max_new_tokens: tokens to generate at most.
            temperature: 0 for always the likeliest token.
            top_k: draw from this many of the likeliest tokens; 0 for all.
            top_p: draw from the likeliest tokens of this total share.
            seed: the same seed gives the same tokens.
            eos_token_id: ids at which the text ends; by default the model's.

        Raises:
            SpecError: an option is out of its range, or prompt and continuation do not fit the
                model's context.
        """
        prompt = _prompt(input_ids)
        room = room_after(self.model.config, prompt.shape[1])
        if not (temperature >= 0 and 0 < top_p <= 1 and top_k >= 0):
            raise SpecError("temperature and top_k must be 0 or more, and top_p in (0, 1]")
        last = min(max_new_tokens, room)
        ends = self.model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        random = np.random.default_rng(seed)
        drawing = np.array([temperature, top_k, top_p, 0.0])
        with self._lock:
            self._read(prompt, prompt.shape[1] + last)
            drawing[3] = random.random()
            token = int(choose(self.logits, temperature, top_k, top_p, drawing[3]))
            for n in range(last):
                yield token
                if token in ends or n + 1 == last:
                    return
                drawing[3] = random.random()
                token = self._step(token, drawing)

    @torch.inference_mode()
    def _read(self, prompt: Tensor, final: int) -> None:
        """Read a prompt by transformers, and take over its cache.

        Args:
            prompt: int64 ``[1, n]``.
            final: tokens that the cache will hold at most.
        """
        out = self.model(prompt, use_cache=True, logits_to_keep=1)
        self.logits[:] = out.logits[0, -1].float().numpy()
        self._length = prompt.shape[1]
        self._grow(min(final, self._length + _FIRST_CAPACITY))
        for n, layer in enumerate(out.past_key_values.layers):
            held = layer.keys.shape[2]  # a sliding layer holds its window
            place = slice(self._length - held, self._length)
            self._keys[n, :, place] = layer.keys[0].float().numpy()
            self._values[n, :, place] = layer.values[0].float().numpy()

    def _grow(self, capacity: int) -> None:
        """Make room for more tokens in the cache, and keep what it holds."""
        s = self._shape
        if self._keys.shape[2] >= capacity:
            return
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            grown = np.zeros((s.layers, s.kv_heads, capacity, s.head_dim), np.float32)
            if old.size:
                grown[:, :, : old.shape[2]] = old
            setattr(self, name, grown)

    def _step(self, token: int, drawing: np.ndarray[Any, np.dtype[np.float64]]) -> int:
        """Feed one token; returns the next one."""
        if self._length >= self._keys.shape[2]:
            self._grow(2 * self._length)
        cache = self._keys, self._values, self._length
        arguments = (token, self._shape, *self._constants, *cache, self._work, drawing)
        threads = 1 if sys.platform == "win32" else torch.get_num_threads()
        if threads != self._pool_size:  # also where a fork left its threads behind
            self._pool = ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="dpq-decode")
            self._pool_size = threads
        assert self._pool is not None
        helpers = [
            self._pool.submit(step.decode, *arguments, n, threads) for n in range(1, threads)
        ]
        following = int(step.decode(*arguments, 0, threads))
        for helper in helpers:
            helper.result()
        self._length += 1
        return following


def _prompt(ids: Tensor | Sequence[int]) -> Tensor:
    """Ids of one prompt as int64 ``[1, n]``."""
    prompt = torch.as_tensor(ids, dtype=torch.int64)
    prompt = prompt[None] if prompt.ndim == 1 else prompt
    if prompt.ndim != 2 or len(prompt) != 1:
        raise SpecError(f"must be the ids of one text, not {list(prompt.shape)}", option="prompt")
    return prompt


def _floats(tensors: Sequence[Tensor]) -> Any:
    """Vectors as the rows of a float32 array."""
    return np.stack([t.detach().float().numpy() for t in tensors])


def _window(attention: Any, config: Any) -> int:
    """The number of the latest tokens that a layer attends to."""
    usual = config.sliding_window if config.model_type == "mistral" else None
    return int(getattr(attention, "sliding_window", usual) or _EVERYTHING)
