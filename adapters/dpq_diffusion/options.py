"""Options of ``dpq eval`` and ``dpq sample`` for diffusion models."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field

from dpq_core.errors import SpecError

SCHEDULERS = ("auto", "ddpm", "ddim", "dpmsolver++")
NONE = "none"
"""What ``--fidelity`` takes to be left out."""

_STEPS = "denoising steps; 0: 50, or the default of a text-to-image pipeline"
_GUIDANCE = (
    "scale of classifier-free guidance, 1: none; by default 1.5 where the model has a null "
    "class, or the default of a text-to-image pipeline"
)
_SCHEDULER = f"sampler: {', '.join(SCHEDULERS)} (auto: the pipeline's own)"
_CHANNELS = "guide only the first N channels, as the official DiT code does with N=3; 0: all"
_LABEL = "class to draw, by number or name; by default all classes in turn"
_PROMPT = "text to draw, for text-to-image pipelines"
_BATCH = "images denoised at a time"


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is drawn, and how."""

    label: tuple[str, ...] = field(default=(), metadata={"help": _LABEL})
    prompt: tuple[str, ...] = field(default=(), metadata={"help": _PROMPT})
    steps: int = field(default=0, metadata={"help": _STEPS})
    guidance: float | None = field(default=None, metadata={"help": _GUIDANCE})
    scheduler: str = field(default="auto", metadata={"help": _SCHEDULER})
    guided_channels: int = field(default=0, metadata={"help": _CHANNELS})
    count: int = field(
        default=0, metadata={"help": "images in all; 0: one row of the grid per class or prompt"}
    )
    columns: int = field(default=8, metadata={"help": "images per row of the grid"})
    batch_size: int = field(default=16, metadata={"help": _BATCH})
    baseline: str = field(
        default="",
        metadata={
            "help": "model, or folder of samples, to show at the same seeds in a before/after grid"
        },
    )
    npz: bool = field(
        default=False, metadata={"help": "also write samples.npz, as the ADM evaluator reads it"}
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_sampler(self.steps, self.guidance, self.scheduler, self.guided_channels)
        _check_at_least("--count", self.count, 0)
        _check_at_least("--columns", self.columns, 1)
        _check_at_least("--batch-size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is measured, on how many samples, and how they are drawn."""

    samples: int = field(default=256, metadata={"help": "images to draw"})
    label: tuple[str, ...] = field(default=(), metadata={"help": _LABEL})
    prompt: tuple[str, ...] = field(default=(), metadata={"help": _PROMPT})
    steps: int = field(default=0, metadata={"help": _STEPS})
    guidance: float | None = field(default=None, metadata={"help": _GUIDANCE})
    scheduler: str = field(default="auto", metadata={"help": _SCHEDULER})
    guided_channels: int = field(default=0, metadata={"help": _CHANNELS})
    batch_size: int = field(default=16, metadata={"help": _BATCH})
    folder: str = field(
        default="",
        metadata={"help": "keep the samples here; those of an earlier run are not drawn again"},
    )
    reference: str = field(
        default="",
        metadata={
            "help": "what samples are compared with: ADM .npz, .safetensors statistics or a folder "
            "of .png; by default what ships with a builtin model"
        },
    )
    inception: str = field(
        default="", metadata={"help": "weights for FID, sFID and IS: a path, or `download`"}
    )
    fidelity: str = field(
        default="",
        metadata={
            "help": "uncompressed model, or its folder of samples, to compare with at the same "
            f"seeds; by default the source of the artifact; {NONE}: leave it out"
        },
    )
    fidelity_samples: int = field(
        default=32, metadata={"help": "how many of the images are compared with that model's"}
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_sampler(self.steps, self.guidance, self.scheduler, self.guided_channels)
        _check_at_least("--samples", self.samples, 2)
        _check_at_least("--batch-size", self.batch_size, 1)
        _check_at_least("--fidelity-samples", self.fidelity_samples, 1)


def _check_sampler(steps: int, guidance: float | None, scheduler: str, channels: int) -> None:
    if scheduler not in SCHEDULERS:
        near = difflib.get_close_matches(scheduler, SCHEDULERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SpecError(
            f"option --scheduler: unknown scheduler {scheduler!r}; {hint}"
            f"known: {', '.join(SCHEDULERS)}"
        )
    _check_at_least("--steps", steps, 0)
    _check_at_least("--guided-channels", channels, 0)
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise SpecError("option --guidance must be a number of 0 or more")


def _check_at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise SpecError(f"option {flag} must be {least} or more, not {value}")
