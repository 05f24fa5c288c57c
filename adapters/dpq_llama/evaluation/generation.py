"""Text that a model generates, and the logits that verify a loaded artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_core.device import resolve
from dpq_core.errors import SpecError
from dpq_core.plugin.results import Sampling
from dpq_core.run import Run
from dpq_llama.options import SampleOptions
from dpq_llama.source.architecture import has_head, longest_context
from dpq_llama.source.checkpoint import read_config
from dpq_llama.source.loading import builtin_name, load_folder, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPTS = {"tiny-llama": "def read_config(path):\n"}
"""First words that suit what a builtin model was trained on."""

_USUAL_PROMPT = "Once upon a time"

_PROBE_TOKENS = 24
_PROBE_POSITIONS = 4
_PROBE_LOGITS = 1024


def sample(source: str, options: SampleOptions, run: Run, out: Path | None) -> Sampling:
    """The continuation of every prompt; the same seed gives the same texts.

    Raises:
        SpecError: a prompt is longer than the model's context.
        SourceError: the model or its tokenizer cannot be read.
    """
    prompts = options.prompt or (_PROMPTS.get(builtin_name(source) or "", _USUAL_PROMPT),)
    tokenizer = load_tokenizer(source)
    model = load_model(source, run.device, options.dtype)
    texts = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # generate() draws from the global generators
        torch.manual_seed(run.seed)
        for index, prompt in enumerate(prompts):
            run.progress("sample", index, len(prompts))
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
            continued_ids = _continue(model, ids, options)
            texts.append(str(tokenizer.decode(continued_ids, skip_special_tokens=True)))
    run.progress("sample", len(prompts), len(prompts))
    return Sampling(texts=tuple(texts), files=_write(texts, out))


def _continue(model: PreTrainedModel, ids: Tensor, options: SampleOptions) -> Tensor:
    """Prompt ids int64 ``[1, n]`` -> ids of prompt and continuation ``[n + new]``."""
    longest = longest_context(model.config)
    room = longest - ids.shape[1]
    if room < 1 or ids.shape[1] == 0:
        raise SpecError(
            f"has {ids.shape[1]} tokens; the model takes 1 to {longest - 1}",
            option="prompt",
        )
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
        **draws,
    )
    return output[0]


def _write(texts: list[str], out: Path | None) -> tuple[Path, ...]:
    if out is None:
        return ()
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"sample-{index}.txt" for index in range(len(texts))]
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
