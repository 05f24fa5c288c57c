"""Perplexity by the standard protocol (that of GPTQ and all tables of the field).

The texts are joined, tokenized once, and cut into non-overlapping windows of ``context`` tokens;
the tail that fills no window is dropped, and no token is added per window. Each window scores its
tokens but the first, which has nothing before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from dpq_core.errors import ANY, Hint, SourceError, SpecError
from dpq_core.run import Progress, silent
from dpq_llama.source.texts import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HEAD_TOKENS = 1024
"""Logits that exist at a time: 1024 tokens of a 32,000-entry vocabulary take 131 MB."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The likelihood that a model gives to a text.

    Attributes:
        nats: summed negative log-likelihood of the scored tokens.
        tokens: number of scored tokens.
        windows: number of windows that they come from.
    """

    nats: float
    tokens: int
    windows: int

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-likelihood per token."""
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    def bits_per_byte(self, tokens: int, n_bytes: int) -> float:
        """Bits per byte of the whole text, which do not depend on the tokenizer.

        Args:
            tokens: of the whole text, the tail included.
            n_bytes: of the whole text in UTF-8.
        """
        return self.nats / self.tokens / math.log(2) * tokens / n_bytes


def read_texts(paths: tuple[Path, ...]) -> str:
    r"""The texts joined by ``\n\n``, as WikiText's lines are in the standard protocol.

    Raises:
        SourceError: a file is missing or not UTF-8 text.
    """
    return "\n\n".join(map(read_text, paths))


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """All of the text as ids int64 ``[tokens]``, tokenized once as the tokenizer does by default.

    Raises:
        SourceError: the text is empty.
    """
    ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
    if not ids:
        raise SourceError("the text to score is empty")
    return torch.tensor(ids, dtype=torch.int64)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    ids: Tensor,
    context: int,
    *,
    batch_size: int = 4,
    limit: int = 0,
    progress: Progress = silent,
) -> Score:
    """The score of a text, window by window.

    Args:
        model: with a language-model head.
        ids: of the text, int64 ``[tokens]``.
        context: tokens per window.
        batch_size: windows per forward pass.
        limit: windows to score; 0 for all.
        progress: called with windows done and windows to do.

    Raises:
        SpecError: the text does not fill one window.
    """
    count = len(ids) // context
    if count == 0:
        raise SpecError(
            f"the text has {len(ids)} tokens, fewer than one window of {context}",
            Hint.of("give a longer text or a shorter {}", context=ANY),
        )
    count = min(count, limit) if limit else count
    windows = ids[: count * context].view(count, context).to(model.device)
    nats = 0.0
    for first in range(0, count, batch_size):
        progress("perplexity", first, count)
        nats += _nats(model, windows[first : first + batch_size])
    progress("perplexity", count, count)
    return Score(nats=nats, tokens=count * (context - 1), windows=count)


def _nats(model: PreTrainedModel, windows: Tensor) -> float:
    """Negative log-likelihood of windows int64 ``[batch, context]``, summed in float64."""
    hidden = model.base_model(input_ids=windows, use_cache=False).last_hidden_state[:, :-1]
    states, targets = hidden.flatten(0, 1), windows[:, 1:].flatten()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    total = 0.0
    for first in range(0, len(states), _HEAD_TOKENS):
        part = slice(first, first + _HEAD_TOKENS)
        logits = head(states[part]).float()
        losses = functional.cross_entropy(logits, targets[part], reduction="none")
        total += losses.double().sum().item()
    return total
