"""Options of language models for ``dpq calibrate``, ``eval``, ``sample`` and ``export``."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.sizes import parse_size

DTYPES = ("auto", "float32", "bfloat16", "float16")
EXPORTS = ("hf", "gguf")
GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types of weights that the gguf package can write and llama.cpp can run, largest first."""
NONE = "none"
"""What ``--baseline`` takes to be left out."""
LOSSES = ("auto", "kl", "cross-entropy", "both", "hidden")
ENGINES = ("auto", "compiled", "transformers")
"""Names of the engines that generate text; ``auto`` is the compiled one where it can."""


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
    baseline: str = field(
        default="",
        metadata={
            "help": "the uncompressed model, to compare with in the same pass over the text: KL "
            f"divergence and how often the most likely token is the same; {NONE}: no comparison"
        },
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
        _check_context(self.context)
        if self.limit < 0:
            raise SpecError("must be 0 or more", option="limit", value=self.limit)
        if self.batch_size < 1:
            raise SpecError("must be 1 or more", option="batch_size", value=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How text is generated."""

    prompt: tuple[str, ...] = field(
        default=(), metadata={"help": "text to continue; without one, a default of the model"}
    )
    chat: bool = field(
        default=False,
        metadata={"help": "the prompt is a user's message; the text is the model's answer"},
    )
    baseline: str = field(
        default="", metadata={"help": "the uncompressed model, to show its texts at the same seed"}
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
    engine: str = field(
        default="auto",
        metadata={
            "help": "what runs the model: compiled, transformers (auto: compiled where it can)"
        },
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_dtype(self.dtype)
        check_engine(self.engine)
        if self.max_new_tokens < 1:
            raise SpecError("must be 1 or more", option="max_new_tokens", value=self.max_new_tokens)
        if not self.temperature >= 0:
            raise SpecError("must be 0 or more", option="temperature", value=self.temperature)
        if not 0 < self.top_p <= 1:
            raise SpecError("must be in (0, 1]", option="top_p", value=self.top_p)


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
        metadata={
            "help": "text that the uncompressed model writes itself; by default it reads "
            "a calibration text that ships with dpq"
        },
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
        default=64,
        metadata={"help": "windows to read or to train on, fewer where the text is short"},
    )
    batch_size: int = field(default=8, metadata={"help": "windows of one step"})
    validation_samples: int = field(
        default=16,
        metadata={"help": "windows that training never sees, rounded up to whole batches"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if self.loss not in LOSSES:
            raise SpecError(f"must be one of {', '.join(LOSSES)}", option="loss", value=self.loss)
        if bool(self.texts) + bool(self.dataset) + self.generate > 1:
            raise SpecError(
                "more than one source of text is given",
                Hint.of("choose one of {}, {} and {}", texts=ANY, dataset=ANY, generate=True),
            )
        _check_context(self.context)
        for name in ("samples", "batch_size", "validation_samples"):
            if getattr(self, name) < 1:
                raise SpecError("must be 1 or more", option=name, value=getattr(self, name))
        if self.samples < self.batch_size:
            raise SpecError(
                "fewer windows than one batch takes",
                Hint.of("lower {} or give more samples", batch_size=ANY),
                option="samples",
                value=self.samples,
            )

    @property
    def validation_windows(self) -> int:
        """Windows for validation: batches of one size, as the loop wants them."""
        size = min(self.batch_size, self.validation_samples)
        return -(-self.validation_samples // size) * size


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The storage of dense weights in the exported files."""

    shard_size: str = field(
        default="4GB",
        metadata={"help": "of a Hugging Face folder: start a new weight file beyond this size"},
    )
    type: str = field(
        default="F16",
        metadata={"help": f"of a GGUF file: type of weights: {', '.join(GGUF_TYPES)}"},
    )
    pre_tokenizer: str = field(
        default="",
        metadata={
            "help": "of a GGUF file: llama.cpp's name for the way in which the tokenizer splits "
            "text, where dpq does not recognize it"
        },
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if self.type not in GGUF_TYPES:
            raise SpecError(
                f"must be one of {', '.join(GGUF_TYPES)}", option="type", value=self.type
            )
        parse_size(self.shard_size)


def check_engine(engine: str) -> None:
    """Refuse an engine that does not exist.

    Raises:
        SpecError: it is none of ``ENGINES``.
    """
    if engine not in ENGINES:
        raise SpecError(f"must be one of {', '.join(ENGINES)}", option="engine", value=engine)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise SpecError(f"must be one of {', '.join(DTYPES)}", option="dtype", value=dtype)


def _check_context(context: int) -> None:
    if context < 0 or context == 1:
        raise SpecError("must be at least 2, or 0 for the default", option="context", value=context)
