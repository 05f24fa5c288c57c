"""Options of ``dpq calibrate`` for language models."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpq_core.errors import SpecError

LOSSES = ("auto", "kl", "cross-entropy", "both", "hidden")


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
    batch: int = field(default=8, metadata={"help": "windows of one step"})
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
        for name in ("samples", "batch", "validation_samples"):
            if getattr(self, name) < 1:
                raise SpecError(f"option --{name.replace('_', '-')} must be 1 or more")
        if self.samples < self.batch:
            raise SpecError(
                f"option --samples ({self.samples}) must be at least --batch ({self.batch})"
            )

    @property
    def validation_windows(self) -> int:
        """Windows for validation: batches of one size, as the loop wants them."""
        size = min(self.batch, self.validation_samples)
        return -(-self.validation_samples // size) * size
