"""``dpq eval`` for language models: the same measurement for artifacts and for their sources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.plugin.results import Evaluation, Metric
from dpq_core.run import Run
from dpq_llama.evaluation import perplexity
from dpq_llama.options import EvaluateOptions
from dpq_llama.source.architecture import longest_context
from dpq_llama.source.checkpoint import BUILTIN
from dpq_llama.source.loading import builtin_name, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_USUAL_CONTEXT = 2048

_HELD_OUT = BUILTIN / "tiny-llama" / "heldout.txt"
"""What ``--texts builtin`` means; tiny-llama has not been trained on it."""

_TRAINED_CONTEXT = {"tiny-llama": 512}
"""Builtin models that were trained on shorter windows than their config allows."""


def evaluate(source: str, options: EvaluateOptions, run: Run) -> Evaluation:
    """The perplexity of texts, the results of lm-eval tasks, or both.

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
    model = load_model(source, run.device, options.dtype)
    metrics: list[Metric] = []
    details: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch.")}
    if paths:
        context = _context(model, options.context, builtin)
        names = ", ".join(path.name for path in paths)
        metrics += _text_metrics(model, tokenizer, text, names, context, options, run)
    if options.tasks:
        from dpq_llama.evaluation.tasks import evaluate_tasks

        task_metrics, details["lm_eval"] = evaluate_tasks(
            model,
            tokenizer,
            options.tasks,
            limit=options.limit,
            batch_size=options.batch_size,
            seed=run.seed,
        )
        metrics += task_metrics
    return Evaluation(metrics=tuple(metrics), details=details)


def _context(model: PreTrainedModel, context: int, builtin: str | None) -> int:
    """Tokens per window; a ``context`` of 0 takes the default of the model."""
    longest = longest_context(model.config)
    if context > longest:
        message = f"more than the {longest} positions of the model"
        raise SpecError(message, option="context", value=context)
    return context or _TRAINED_CONTEXT.get(builtin or "", min(_USUAL_CONTEXT, longest))


def _text_metrics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    names: str,
    context: int,
    options: EvaluateOptions,
    run: Run,
) -> list[Metric]:
    ids = perplexity.tokenize(tokenizer, text)
    result = perplexity.score(
        model,
        ids,
        context,
        batch_size=options.batch_size,
        limit=options.limit,
        progress=run.progress,
    )
    dtype = str(model.dtype).removeprefix("torch.")
    protocol = (
        f"context {context}, {result.tokens:,} tokens in {result.windows} windows of {names}, "
        f"{dtype}"
    )
    return [
        Metric(
            name="perplexity",
            value=result.perplexity,
            higher_is_better=False,
            protocol=protocol,
        ),
        Metric(
            name="bits_per_byte",
            value=result.bits_per_byte(len(ids), len(text.encode())),
            higher_is_better=False,
            protocol=protocol,
        ),
    ]
