"""Perplexity by the standard protocol (that of GPTQ and all tables of the field).

The texts are joined, tokenized once, and cut into non-overlapping windows of ``context`` tokens;
the tail that fills no window is dropped, and no token is added per window. Each window scores its
tokens but the first, which has nothing before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from dpq_core.errors import ANY, Hint, SourceError, SpecError
from dpq_core.run import Progress, silent
from dpq_llama.source.architecture import logits_function
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


_FIRST = 160
"""Positions whose divergence is kept one by one, at most."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The likelihoods that two models give to a text, and how far apart their predictions are.

    Attributes:
        model: score of the model.
        baseline: score of the model that it is compared with.
        nats: summed Kullback-Leibler divergence of the model's predictions from the baseline's.
        agreements: number of positions at which both find the same token the most likely.
        first: divergence in nats at the first positions, one by one.
    """

    model: Score
    baseline: Score
    nats: float
    agreements: int
    first: tuple[float, ...] = ()

    @property
    def divergence(self) -> float:
        """Mean Kullback-Leibler divergence from the baseline, in nats per token."""
        return self.nats / self.model.tokens

    @property
    def agreement(self) -> float:
        """Share of the positions at which both find the same token the most likely."""
        return self.agreements / self.model.tokens


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
    windows = _windows(ids, context, limit).to(model.device)
    logits = logits_function(model)
    nats = 0.0
    for batch in _batches(windows, batch_size, progress):
        states, targets = _states(model, batch), batch[:, 1:].flatten()
        for part in _parts(len(targets), _HEAD_TOKENS):
            nats += _nats(logits(states[part]).float(), targets[part])
    return Score(nats=nats, tokens=len(windows) * (context - 1), windows=len(windows))


@torch.no_grad()
def compare(
    model: PreTrainedModel,
    baseline: PreTrainedModel,
    ids: Tensor,
    context: int,
    *,
    batch_size: int = 4,
    limit: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """The scores of two models and the distance of their predictions, in one pass over a text.

    Args:
        model: with a language-model head.
        baseline: another one with the same vocabulary; usually the uncompressed model.
        ids: of the text, int64 ``[tokens]``.
        context: tokens per window.
        batch_size: windows per forward pass.
        limit: windows to score; 0 for all.
        progress: called with windows done and windows to do.

    Raises:
        SpecError: the text does not fill one window.
    """
    windows = _windows(ids, context, limit)
    functions = logits_function(model), logits_function(baseline)
    nats, other_nats, divergence, agreements = 0.0, 0.0, 0.0, 0
    first: list[float] = []
    for batch in _batches(windows, batch_size, progress):
        states = _states(model, batch.to(model.device))
        other_states = _states(baseline, batch.to(baseline.device))
        targets = batch[:, 1:].flatten().to(model.device)
        for part in _parts(len(targets), _HEAD_TOKENS // 4):
            logits = functions[0](states[part]).float()
            other = functions[1](other_states[part]).float().to(logits.device)
            nats += _nats(logits, targets[part])
            other_nats += _nats(other, targets[part])
            agreements += int((logits.argmax(-1) == other.argmax(-1)).sum())
            divergences = _divergences(logits, other)
            divergence += divergences.sum().item()
            first += divergences[: _FIRST - len(first)].tolist()
    tokens = len(windows) * (context - 1)
    return Comparison(
        model=Score(nats=nats, tokens=tokens, windows=len(windows)),
        baseline=Score(nats=other_nats, tokens=tokens, windows=len(windows)),
        nats=divergence,
        agreements=agreements,
        first=tuple(first[: context - 1]),
    )


def _windows(ids: Tensor, context: int, limit: int) -> Tensor:
    """The windows int64 ``[windows, context]`` of a text, at most ``limit`` where that is not 0.

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
    return ids[: count * context].view(count, context)


def _batches(windows: Tensor, size: int, progress: Progress) -> Iterator[Tensor]:
    """The windows, ``size`` at a time; progress counts them."""
    count = len(windows)
    for first in range(0, count, size):
        progress("perplexity", first, count)
        yield windows[first : first + size]
    progress("perplexity", count, count)


def _states(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Last hidden states ``[batch * (context - 1), hidden]`` at positions with a next token."""
    outputs = model.base_model(input_ids=windows, use_cache=False)
    states: Tensor = outputs.last_hidden_state[:, :-1].flatten(0, 1)
    return states


def _parts(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` positions."""
    return (slice(first, first + size) for first in range(0, count, size))


def _nats(logits: Tensor, targets: Tensor) -> float:
    """Negative log-likelihood of the targets, summed in float64."""
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return losses.double().sum().item()


def _divergences(logits: Tensor, baseline: Tensor) -> Tensor:
    """KL(baseline || model) of logits ``[n, vocabulary]`` at every position, float64 ``[n]``."""
    expected = baseline.log_softmax(-1)
    terms = expected.exp() * (expected - logits.log_softmax(-1))
    return terms.sum(-1).double()
