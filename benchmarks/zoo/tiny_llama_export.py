"""Model folder of ``builtin:tiny-llama``: held-out perplexity, weights, tokenizer, model card."""

from __future__ import annotations

import copy
import json
import math
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from stdlib_corpus import END_OF_TEXT, HELD_OUT, PAD
from torch.nn import functional

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

SEQUENCE = 512
TABLE_ROWS = 10

HELDOUT_LICENSE = """\
heldout.txt is unmodified source text of modules of the CPython standard library, joined.
Copyright (c) 2001 and later Python Software Foundation; All Rights Reserved.
Licensed under the Python Software Foundation License Version 2 (PSF-2.0),
https://docs.python.org/3/license.html
"""

CARD = """\
---
license: apache-2.0
language: [code]
library_name: transformers
pipeline_tag: text-generation
---

# tiny-llama

A Llama of {parameters:.1f} M parameters that writes Python, shipped with dpq as
`builtin:tiny-llama`. It is a test article: small enough to quantize and evaluate quickly without a
download, and trained, so that perplexity and samples respond to quantization. It completes code
that looks plausible at first sight, and is of no other use.

| | |
|---|---|
| Held-out perplexity, window 512 | **{ppl:.3f}** ({bits:.3f} bits per byte) |
| Training tokens seen | {tokens:.1f} M ({epochs:.1f} epochs of {train_millions:.2f} M) |
| Weights | {megabytes:.1f} MB, bfloat16 |

## Architecture

`LlamaForCausalLM`: hidden size 384, feed-forward size 1024, 6 layers, 6 heads of 64 with 2
key-value heads, vocabulary 4096, context 1024 (trained on windows of {sequence}), RoPE base
10000, RMSNorm epsilon 1e-5. The output head is tied to the embedding and stored once.

The tokenizer is a byte-level BPE with separate digits, trained on the training split only. It
adds no special token by itself; `{end_of_text}` ends every training document and serves as
beginning and end of text, `{pad}` pads.

## Data

The `.py` files of the standard library of CPython {python}, library and tests: {files} files.
Left out are codecs and other generated tables, and files that are mostly numbers or escapes.

`heldout.txt` joins {modules} whole modules ({heldout_bytes:,} bytes, {heldout_tokens:,} tokens):

{names}

Neither they, nor their test files, nor files that share code or wording with them were trained on.

## Training

One command; on one thread of a CPU with bfloat16 matrix instructions (AMX) it took
{wall_minutes:.0f} minutes:

    python benchmarks/zoo/train_tiny_llama.py --out adapters/dpq_llama/builtin/tiny-llama

AdamW (betas 0.9 and 0.95, weight decay 0.1 on matrices), {step} steps of {tokens_per_step}
tokens ({end}), linear warmup to a learning rate of {peak:g}, constant, then linear decay to zero
over the last {decay:.0%} of the run, gradients clipped to norm 1, bfloat16 autocast over float32
master weights. Data, order and initial weights are seeded; another machine still rounds
differently, reaches another step within a time limit, and ends at different weights.

The shipped weights come from a run that shared its machine with other work and was resumed once,
at {rate:.0f} tokens/s on average; an undisturbed core reached about 4300 tokens/s.

From `training_log.jsonl` (held-out columns under autocast; train loss is the mean since the
previous evaluation):

{table}

## Perplexity protocol

`heldout.txt` is tokenised once without special tokens and cut into non-overlapping windows of
512 tokens; the tail is dropped. Each window predicts its tokens 2 to 512 from those before them.
Perplexity is the exponential of the mean negative log-likelihood of all these predictions,
computed in float32 from the exported bfloat16 weights.

## Licence

The model is licensed under Apache-2.0. The text it was trained on, and `heldout.txt`, are source
code of CPython, copyright Python Software Foundation, licensed under PSF-2.0
(`LICENSE-heldout.txt`).
"""


@dataclass(frozen=True)
class Recipe:
    """What the model card says about data and training.

    Attributes:
        steps: Planned number of steps.
        minutes: Limit of wall time.
        tokens_per_step: Tokens per step.
        peak: Peak learning rate.
        decay: Share of the steps in the decay.
        files: Number of training documents.
        train_tokens: Tokens of the training split.
        heldout: The held-out text.
    """

    steps: int
    minutes: float
    tokens_per_step: int
    peak: float
    decay: float
    files: int
    train_tokens: int
    heldout: str


@dataclass
class Progress:
    """State of a run besides weights and optimizer.

    Attributes:
        step: Number of steps taken.
        seconds: Wall time spent in training so far.
        log: One row per evaluation.
    """

    step: int
    seconds: float
    log: list[dict[str, float]]


def mean_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Returns the mean next-token loss of a batch of windows."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: torch.nn.Module, ids: list[int], autocast: bool) -> float:
    """Mean loss over non-overlapping windows of 512 tokens, no token added, tail dropped.

    Args:
        model: The model to evaluate.
        ids: The held-out text, tokenised once.
        autocast: Whether to compute in bfloat16 where that is safe, instead of float32.

    Returns:
        The mean negative log-likelihood of the 511 predicted tokens of every window.
    """
    windows = torch.tensor(ids[: len(ids) // SEQUENCE * SEQUENCE]).view(-1, SEQUENCE)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total = sum(mean_loss(model, part).item() * len(part) for part in windows.split(8))
    return total / len(windows)


def log_table(log: list[dict[str, float]]) -> str:
    """Formats about ten rows of the training log, the last one included, as a table."""
    lines = [
        "| step | tokens | train loss | held-out loss | held-out perplexity | learning rate |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    stride = max(1, math.ceil(len(log) / TABLE_ROWS))
    for row in log[::-1][::stride][::-1]:
        lines.append(
            f"| {row['step']} | {row['tokens'] / 1e6:.2f} M | {row['train_loss']:.3f} "
            f"| {row['heldout_loss']:.3f} | {row['heldout_ppl']:.3f} | {row['lr']:.2e} |"
        )
    return "\n".join(lines)


def write_card(folder: Path, recipe: Recipe, progress: Progress, loss: float, ids: int) -> None:
    """Writes the README of the model folder.

    Args:
        folder: Folder that already holds the weights.
        recipe: Data and settings of the run.
        progress: Progress of the run.
        loss: Held-out loss of the exported weights in float32.
        ids: Number of tokens of the held-out text.
    """
    weights = (folder / "model.safetensors").stat().st_size
    seen = progress.step * recipe.tokens_per_step
    heldout_bytes = len(recipe.heldout.encode())
    card = CARD.format(
        **vars(recipe),
        parameters=weights / 2e6,
        megabytes=weights / 1e6,
        ppl=math.exp(loss),
        bits=loss / math.log(2) * ids / heldout_bytes,
        tokens=seen / 1e6,
        train_millions=recipe.train_tokens / 1e6,
        epochs=seen / recipe.train_tokens,
        sequence=SEQUENCE,
        end_of_text=END_OF_TEXT,
        pad=PAD,
        python=platform.python_version(),
        modules=len(HELD_OUT),
        names=", ".join(f"`{name}`" for name in HELD_OUT),
        heldout_bytes=heldout_bytes,
        heldout_tokens=ids,
        wall_minutes=progress.seconds / 60,
        step=progress.step,
        rate=seen / progress.seconds,
        end=_end_of_run(recipe, progress),
        table=log_table(progress.log),
    )
    (folder / "README.md").write_text(card, "utf-8")


def _end_of_run(recipe: Recipe, progress: Progress) -> str:
    if progress.step >= recipe.steps:
        return "all planned steps"
    return f"{recipe.steps} planned; the time limit is {recipe.minutes:g} minutes"


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer so that `AutoTokenizer` loads it as a fast tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_weights(folder: Path, model: LlamaForCausalLM) -> None:
    """Writes the bfloat16 weights and both configuration files."""
    from transformers import GenerationConfig

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(rope_theta=10000.0, torch_dtype="bfloat16")  # names of older readers
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    GenerationConfig(
        bos_token_id=0, eos_token_id=0, pad_token_id=1, do_sample=True, temperature=0.7, top_p=0.95
    ).save_pretrained(folder)


def export(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    recipe: Recipe,
    progress: Progress,
) -> float:
    """Writes the complete model folder, replacing each file atomically.

    Args:
        out: The model folder.
        model: The model with its float32 master weights.
        tokenizer: The trained tokenizer.
        recipe: Data and settings of the run.
        progress: Progress of the run.

    Returns:
        Held-out perplexity of the exported weights, computed in float32.
    """
    from transformers import AutoModelForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as name:
        folder = Path(name)
        write_weights(folder, model)
        write_tokenizer(folder, tokenizer)
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = tokenizer.encode(recipe.heldout).ids
        loss = heldout_loss(saved, ids, autocast=False)
        write_card(folder, recipe, progress, loss, len(ids))
        log = "".join(json.dumps(row) + "\n" for row in progress.log)
        (folder / "training_log.jsonl").write_text(log)
        (folder / "heldout.txt").write_text(recipe.heldout, "utf-8")
        (folder / "LICENSE-heldout.txt").write_text(HELDOUT_LICENSE)
        for path in folder.iterdir():
            path.chmod(0o644)
            path.replace(out / path.name)
    return math.exp(loss)
