"""Options of ``dpq calibrate``, ``dpq eval`` and ``dpq sample`` for language models."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpq_core.errors import SpecError

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOSSES = ("auto", "kl", "cross-entropy", "both", "hidden")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is measured: perplexity of a text, or lm-eval tasks, or both."""

    texts: tuple[str, ...] = field(
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


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What the model reads while it is trained, and what its answers are held against."""

    texts: tuple[str, ...] = field(
        default=(),
        metadata={"help": "text files (.gz too), glob patterns, or folders of .txt and .gz files"},
    )
    dataset: str = field(
        default="",
        metadata={
            "help": "hub id or folder for the `datasets` library, as ID[:config[:split[:column]]]"
        },
    )
    generate: bool = field(
        default=False,
        metadata={"help": "text that the uncompressed model writes itself; default without data"},
    )
    loss: str = field(
        default="auto",
        metadata={
            "help": "kl: distance to the uncompressed model's predictions; cross-entropy: of the "
            "text; both; hidden: distance of last hidden states (auto: kl, hidden without a head)"
        },
    )
    context: int = field(
        default=0,
        metadata={"help": "tokens per window; 0: the smaller of 512 and what the model allows"},
    )
    samples: int = field(
        default=128, metadata={"help": "windows to train on, fewer where the text is short"}
    )
    batch_size: int = field(default=8, metadata={"help": "windows of one step"})
    validation_samples: int = field(
        default=16,
        metadata={"help": "windows that training never sees, rounded up to whole batches"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if self.loss not in LOSSES:
            raise SpecError(f"option --loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if bool(self.texts) + bool(self.dataset) + self.generate > 1:
            raise SpecError("--texts, --dataset and --generate exclude each other; choose one")
        if self.context < 0 or self.context == 1:
            raise SpecError("option --context must be at least 2, or 0 for the default")
        for name in ("samples", "batch_size", "validation_samples"):
            if getattr(self, name) < 1:
                raise SpecError(f"option --{name.replace('_', '-')} must be 1 or more")
        if self.samples < self.batch_size:
            raise SpecError(
                f"option --samples ({self.samples}) must be at least --batch-size "
                f"({self.batch_size})"
            )

    @property
    def validation_windows(self) -> int:
        """Windows for validation: batches of one size, as the loop wants them."""
        size = min(self.batch_size, self.validation_samples)
        return -(-self.validation_samples // size) * size


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise SpecError(f"option --dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
