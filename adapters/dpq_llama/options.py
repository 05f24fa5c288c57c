"""Options of ``dpq eval`` and ``dpq sample`` for language models."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpq_core.errors import SpecError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is measured: perplexity of a text, or lm-eval tasks, or both."""

    text: tuple[str, ...] = field(
        default=(),
        metadata={"help": "text file to score, or `builtin` for the held-out text that ships"},
    )
    context: int = field(
        default=0,
        metadata={"help": "tokens per window; 0: the smaller of 2048 and what the model allows"},
    )
    tasks: tuple[str, ...] = field(
        default=(),
        metadata={"help": "lm-eval task names, comma-separated, or a task YAML, or a folder"},
    )
    limit: int = field(
        default=0,
        metadata={"help": "score only the first N windows, or N documents per task; 0: all"},
    )
    batch_size: int = field(default=4, metadata={"help": "windows or requests per forward pass"})
    dtype: str = field(
        default="auto",
        metadata={"help": f"dtype of the activations: {', '.join(DTYPES)} (auto: the model's)"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_dtype(self.dtype)
        if self.context < 0 or self.context == 1:
            raise SpecError("option --context must be at least 2, or 0 for the default")
        if self.limit < 0 or self.batch_size < 1:
            raise SpecError("option --limit must be 0 or more, --batch-size 1 or more")


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How text is generated."""

    prompt: tuple[str, ...] = field(
        default=(), metadata={"help": "text to continue; without one, a default of the model"}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "tokens to generate at most"})
    temperature: float = field(
        default=0.7, metadata={"help": "0: always the most likely token; higher: more random"}
    )
    top_p: float = field(
        default=0.95, metadata={"help": "sample from the most likely tokens of this total share"}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": f"dtype of the activations: {', '.join(DTYPES)} (auto: the model's)"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_dtype(self.dtype)
        if self.max_new_tokens < 1:
            raise SpecError("option --max-new-tokens must be 1 or more")
        if not self.temperature >= 0:
            raise SpecError("option --temperature must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise SpecError("option --top-p must be in (0, 1]")


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise SpecError(f"option --dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
