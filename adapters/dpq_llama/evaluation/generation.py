"""Text that a model generates, and the logits that verify a loaded artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_core.device import resolve
from dpq_core.errors import SpecError
from dpq_core.plugin.results import Metric, Sampling
from dpq_core.plugin.speed import per_second
from dpq_core.run import Run
from dpq_llama.options import SampleOptions
from dpq_llama.source.architecture import has_head, room_after
from dpq_llama.source.checkpoint import read_config
from dpq_llama.source.loading import (
    builtin_name,
    check_ids,
    load_folder,
    load_model,
    load_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dpq_llama.compiled.decoder import CompiledDecoder

_PROMPTS = {"tiny-llama": "def read_config(path):\n"}
"""First words that suit what a builtin model was trained on."""

_USUAL_PROMPT = "Once upon a time"
_CHAT_PROMPT = "Tell me a short story."

_TIMED_TOKENS = 64
"""Tokens that are generated to time a model."""

_PROBE_TOKENS = 24
_PROBE_POSITIONS = 4
_PROBE_LOGITS = 1024


def sample(source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
    """The continuation of every prompt, or the answer to it; the same seed gives the same texts.

    Raises:
        SpecError: a prompt is longer than the model's context, or there is no chat template.
        SourceError: the model or its tokenizer cannot be read.
    """
    usual = (
        _CHAT_PROMPT if options.chat else _PROMPTS.get(builtin_name(source) or "", _USUAL_PROMPT)
    )
    prompts = options.prompt or (usual,)
    sources = [source, options.baseline] if options.baseline else [source]
    writers = [_Writer.of(name, options, run) for name in sources]
    texts: list[list[str]] = [[] for _ in writers]
    total = len(prompts) * len(writers)
    for number, prompt in enumerate(prompts):
        for index, writer in enumerate(writers):
            run.progress("sample", number * len(writers) + index, total)
            title = sources[index] if options.baseline else ""
            texts[index].append(writer.write(prompt, number, title))
    run.progress("sample", total, total)
    files = _files(texts[0], out, "sample-{}.txt")
    baseline_texts = texts[1] if options.baseline else []
    files += _files(baseline_texts, out, "sample-{}-baseline.txt")
    return Sampling(texts=tuple(texts[0]), files=files, baseline_texts=tuple(baseline_texts))


@dataclass(frozen=True)
class _Writer:
    """A loaded model that continues prompts or answers messages."""

    model: PreTrainedModel
    decoder: CompiledDecoder | None
    tokenizer: PreTrainedTokenizerBase
    options: SampleOptions
    run: Run

    @classmethod
    def of(cls, source: str, options: SampleOptions, run: Run) -> _Writer:
        """Load model and tokenizer of a source.

        Raises:
            SpecError: a chat is asked for, and the tokenizer has no template for it.
            AdapterError: the compiled engine is asked for, and cannot run the model.
            SourceError: the model or its tokenizer cannot be read.
        """
        tokenizer = load_tokenizer(source)
        if options.chat and not tokenizer.chat_template:
            raise SpecError(f"{source} has no chat template", option="chat")
        model = load_model(source, run.device, options.dtype)
        return cls(model, _decoder(model, options), tokenizer, options, run)

    def write(self, prompt: str, number: int, title: str) -> str:
        """Continue or answer one prompt, piece by piece where somebody reads along.

        Args:
            prompt: text or message.
            number: index of the prompt, by which its random numbers differ from the others'.
            title: the model's name for readers.
        """
        device = self.model.device
        ids = self._ids(prompt).to(device)
        check_ids(self.model, ids)
        streamer = None
        if self.run.stream is not None:
            piece = partial(self.run.stream, number, title)
            streamer = _streamer(self.tokenizer, piece, skip_prompt=self.options.chat)
        if self.decoder is not None:
            continued = self.decoder.generate(
                ids,
                max_new_tokens=self.options.max_new_tokens,
                temperature=self.options.temperature,
                top_p=self.options.top_p,
                seed=self.run.seed + number,
                streamer=streamer,
            )
            return self._text(continued[0], ids)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # generate() draws from the global generators
            torch.manual_seed(self.run.seed + number)
            continued = _continue(self.model, ids, self.options, streamer)
        return self._text(continued, ids)

    def _text(self, continued: Tensor, ids: Tensor) -> str:
        """The text of prompt and continuation ``[n + new]``, or of the answer to a chat."""
        new = continued[ids.shape[1] :] if self.options.chat else continued
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

    def _ids(self, prompt: str) -> Tensor:
        """Ids int64 ``[1, n]`` of a prompt, or of the chat that it begins."""
        if self.options.chat:
            message = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
            encoded = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            encoded = self.tokenizer(prompt, return_tensors="pt")
        ids: Tensor = encoded["input_ids"]
        return ids


def speed(source: str, run: Run) -> Metric:
    """Tokens per second of greedy generation after a prompt of a few words.

    Raises:
        SourceError: the model or its tokenizer cannot be read.
    """
    options = SampleOptions(max_new_tokens=_TIMED_TOKENS, temperature=0)
    writer = _Writer.of(source, options, replace(run, stream=None))
    ids = writer.tokenizer(_USUAL_PROMPT, return_tensors="pt")["input_ids"].to(writer.model.device)
    check_ids(writer.model, ids)
    if writer.decoder is not None:
        engine = "compiled code"
        generate: Callable[[], Tensor] = partial(
            writer.decoder.generate, ids, max_new_tokens=_TIMED_TOKENS
        )
    else:
        engine = f"transformers, {str(writer.model.dtype).removeprefix('torch.')}"
        generate = partial(_continue, writer.model, ids, options)

    def work() -> int:
        length: int = generate().shape[-1] - ids.shape[1]  # a text may end early
        return length

    return per_second("tokens/s", work, f"tokens by {engine}", run)


def _streamer(
    tokenizer: PreTrainedTokenizerBase, piece: Callable[[str], None], *, skip_prompt: bool
) -> Any:
    """A streamer of transformers that hands on text in pieces."""
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            piece(text)

    return Pieces(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)


def _decoder(model: PreTrainedModel, options: SampleOptions) -> CompiledDecoder | None:
    """The compiled decoder of a model, where the options want it and it can run the model.

    Raises:
        AdapterError: the compiled engine is asked for, and cannot run the model.
    """
    if options.engine == "transformers":
        return None
    from dpq_llama.compiled.decoder import CompiledDecoder, why_not  # numba loads on first use

    exact = options.dtype in ("auto", "float32")  # of what the compiled step computes with
    if options.engine == "auto" and (not exact or why_not(model)):
        return None
    return CompiledDecoder(model)


def _continue(
    model: PreTrainedModel, ids: Tensor, options: SampleOptions, streamer: Any = None
) -> Tensor:
    """Prompt ids int64 ``[1, n]`` -> ids of prompt and continuation ``[n + new]``."""
    room = room_after(model.config, ids.shape[1])
    draws: dict[str, Any] = {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    if options.temperature > 0:
        draws = {
            "do_sample": True,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": 0,
        }
    end = model.generation_config.eos_token_id
    padding = model.generation_config.pad_token_id
    if padding is None and end is not None:
        padding = end[0] if isinstance(end, list) else end
    output: Tensor = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=min(options.max_new_tokens, room),
        pad_token_id=padding,
        streamer=streamer,
        **draws,
    )
    return output[0]


def _files(texts: list[str], out: Path | None, name: str) -> tuple[Path, ...]:
    """The files in ``out`` to which texts were written, named by their numbers."""
    if out is None:
        return ()
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name.format(index) for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, "utf-8")
    return tuple(paths)


@torch.no_grad()
def probe(folder: Path, run: Run) -> dict[str, Tensor]:
    """Logits ``[4, at most 1024]`` at the last positions of a fixed token sequence.

    The ids step through the vocabulary, and so do the columns that are kept: a wrong embedding,
    block or head shows. Computed in float32, so that kernels may differ only by rounding. A model
    without a language-model head gives its hidden states instead.
    """
    head = has_head(read_config(folder))
    model = load_folder(folder, resolve(run.device), "float32", head=head)
    ids = (torch.arange(_PROBE_TOKENS) * 7919 + 1) % model.config.get_text_config().vocab_size
    outputs = model(ids[None].to(model.device), use_cache=False)
    values = (outputs.logits if head else outputs.last_hidden_state)[0, -_PROBE_POSITIONS:]
    columns = slice(None, None, -(-values.shape[1] // _PROBE_LOGITS))
    return {"logits" if head else "hidden": values[:, columns].float().cpu()}
