"""``dpq eval`` for language models: the same measurement for artifacts and for their sources."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.plugin.results import Evaluation, Metric, RatedText
from dpq_core.run import Run
from dpq_llama.evaluation import perplexity
from dpq_llama.options import NONE, EvaluateOptions
from dpq_llama.source.architecture import longest_context
from dpq_llama.source.checkpoint import BUILTIN
from dpq_llama.source.loading import builtin_name, check_ids, load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_USUAL_CONTEXT = 2048

_HELD_OUT = BUILTIN / "tiny-llama" / "heldout.txt"
"""What ``--texts builtin`` means; tiny-llama has not been trained on it."""

_TRAINED_CONTEXT = {"tiny-llama": 512}
"""Builtin models that were trained on shorter windows than their config allows."""


@dataclass(frozen=True)
class _Subject:
    """A model to measure, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def dtype(self) -> str:
        """Dtype of the activations."""
        return str(self.model.dtype).removeprefix("torch.")


def evaluate(source: str, options: EvaluateOptions, run: Run) -> Evaluation:
    """The perplexity of texts, the results of lm-eval tasks, or both.

    With a baseline both models read the text in one pass, and the distance of their predictions is
    measured too. A baseline that cuts the text into other tokens is left to be measured alone.

    Raises:
        SpecError: there is nothing to measure, or an option does not fit the model.
        SourceError: the model, a text or a task's data cannot be read.
    """
    builtin = builtin_name(source)
    texts = options.texts or (("builtin",) if builtin and not options.tasks else ())
    if not texts and not options.tasks:
        raise SpecError(
            "nothing to measure", Hint.of("give {} (a held-out text) or {}", texts=ANY, tasks=ANY)
        )
    paths = tuple(_HELD_OUT if text == "builtin" else Path(text) for text in texts)
    text = perplexity.read_texts(paths)
    tokenizer = load_tokenizer(source)
    ids = perplexity.tokenize(tokenizer, text) if paths else None
    baseline = "" if options.baseline == NONE else options.baseline
    other_tokenizer = load_tokenizer(baseline) if baseline else None
    subject = _Subject(load_model(source, run.device, options.dtype), tokenizer)
    if ids is not None:
        check_ids(subject.model, ids)
    other = None
    if other_tokenizer is not None:
        other = _Subject(load_model(baseline, run.device, options.dtype), other_tokenizer)
        if not _same_tokens(subject, other, ids, text):
            note = f"KL and agreement are left out: {baseline} has other tokens"
            alone = _evaluation(subject, None, ids, text, paths, builtin, options, run)
            return replace(alone, notes=(note,))
    return _evaluation(subject, other, ids, text, paths, builtin, options, run)


def _same_tokens(subject: _Subject, other: _Subject, ids: Tensor | None, text: str) -> bool:
    """Whether two models read a text as the same ids, of one vocabulary.

    Args:
        subject: the model.
        other: the baseline.
        ids: of the text, as the model reads it; None where there is no text, and an example tells.
        text: the text.
    """
    sizes = {s.model.config.get_text_config().vocab_size for s in (subject, other)}
    if len(sizes) > 1:
        return False
    example = "a b" if ids is None else text
    own = perplexity.tokenize(subject.tokenizer, example) if ids is None else ids
    return own.equal(perplexity.tokenize(other.tokenizer, example))


def _evaluation(
    subject: _Subject,
    other: _Subject | None,
    ids: Tensor | None,
    text: str,
    paths: tuple[Path, ...],
    builtin: str | None,
    options: EvaluateOptions,
    run: Run,
) -> Evaluation:
    """The metrics of a model and, where there is one, of the baseline."""
    metrics: list[Metric] = []
    other_metrics: list[Metric] = []
    details: dict[str, Any] = {"dtype": subject.dtype}
    rated = None
    if ids is not None:
        context = _context(subject.model, options.context, builtin)
        names = ", ".join(path.name for path in paths)
        sizes = len(ids), len(text.encode())
        keywords: dict[str, Any] = {
            "batch_size": options.batch_size,
            "limit": options.limit,
            "progress": run.progress,
        }
        if other is None:
            score = perplexity.score(subject.model, ids, context, **keywords)
            metrics += _text_metrics(score, sizes, context, names, subject.dtype)
        else:
            _context(other.model, context, None)
            both = perplexity.compare(subject.model, other.model, ids, context, **keywords)
            metrics += _text_metrics(both.model, sizes, context, names, subject.dtype)
            other_metrics += _text_metrics(both.baseline, sizes, context, names, other.dtype)
            metrics += _distances(both, metrics[0].protocol)
            rated = _rated(both.first, ids, subject.tokenizer)
    if options.tasks:
        task_metrics, details["lm_eval"] = _task_metrics(subject, options, run)
        metrics += task_metrics
        if other is not None:
            other_metrics += _task_metrics(other, options, run)[0]
    measured = None
    if other is not None:
        measured = Evaluation(metrics=tuple(other_metrics), details={"dtype": other.dtype})
    return Evaluation(metrics=tuple(metrics), details=details, baseline=measured, text=rated)


def _task_metrics(
    subject: _Subject, options: EvaluateOptions, run: Run
) -> tuple[list[Metric], dict[str, Any]]:
    """The metrics of lm-eval's tasks, and the harness's own results."""
    from dpq_llama.evaluation.tasks import evaluate_tasks

    return evaluate_tasks(
        subject.model,
        subject.tokenizer,
        options.tasks,
        limit=options.limit,
        batch_size=options.batch_size,
        seed=run.seed,
    )


def _context(model: PreTrainedModel, context: int, builtin: str | None) -> int:
    """Tokens per window; a ``context`` of 0 takes the default of the model."""
    longest = longest_context(model.config)
    if context > longest:
        message = f"more than the {longest} positions of the model"
        raise SpecError(message, option="context", value=context)
    return context or _TRAINED_CONTEXT.get(builtin or "", min(_USUAL_CONTEXT, longest))


def _text_metrics(
    score: perplexity.Score, sizes: tuple[int, int], context: int, names: str, dtype: str
) -> list[Metric]:
    """Perplexity and bits per byte; ``sizes`` are tokens and UTF-8 bytes of the whole text."""
    protocol = (
        f"context {context}, {score.tokens:,} tokens in {score.windows} windows of {names}, {dtype}"
    )
    values = {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte(*sizes)}
    return [
        Metric(name=name, value=value, higher_is_better=False, protocol=protocol)
        for name, value in values.items()
    ]


def _rated(nats: tuple[float, ...], ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> RatedText:
    """The first tokens of a text with the divergence at the position that predicts each.

    Args:
        nats: divergence of the predictions of the second token and those after it.
        ids: of the text, int64 ``[tokens]``.
        tokenizer: makes text of them.
    """
    texts = [str(tokenizer.decode(ids[:count])) for count in range(len(nats) + 2)]
    pieces = [after[len(before) :] for before, after in pairwise(texts)]
    rated = tuple(zip(pieces, (0.0, *nats), strict=True))
    return RatedText(name="KL divergence from the baseline, nats", pieces=rated)


def _distances(both: perplexity.Comparison, protocol: str) -> list[Metric]:
    """The distance of a model's predictions from the baseline's."""
    return [
        Metric(
            name="kl_divergence",
            value=both.divergence,
            higher_is_better=False,
            protocol=f"of the baseline's predictions, in nats per token; {protocol}",
        ),
        Metric(
            name="top1_agreement",
            value=both.agreement,
            higher_is_better=True,
            protocol=f"share of tokens with the baseline's most likely one; {protocol}",
        ),
    ]
