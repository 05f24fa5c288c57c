"""The options of diffusion models for ``dpq compress``, ``calibrate``, ``eval`` and ``sample``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dpq_core.errors import ANY, Hint, SpecError
from dpq_core.nearest import nearest

SCHEDULERS = ("auto", "ddpm", "ddim", "dpmsolver++")
LOSSES = ("distill", "ddpm", "flow")
NONE = "none"
"""What ``--baseline`` takes to be left out."""

_STEPS = "denoising steps of one picture; 0: 50, or the default of a text-to-image pipeline"
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
class CompressOptions:
    """Options of compression: the components that are compressed; others are copied as they are."""

    components: str = field(
        default="",
        metadata={
            "help": "components to compress, comma-separated, e.g. transformer,text_encoder,vae; "
            "without it, the denoiser (transformer or unet)"
        },
    )

    def __post_init__(self) -> None:
        """Refuse an empty name in the list of components."""
        if self.components and not all(self.names):
            raise SpecError("an empty name", option="components", value=self.components)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the components to compress; none means the denoiser."""
        parts = self.components.split(",") if self.components else []
        return tuple(part.strip() for part in parts)


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Options of calibration: the denoiser's inputs, its loss and the sizes of batches."""

    images: str = field(
        default="",
        metadata={
            "help": "folder of images to train on; of a class-conditional model, one sub-folder "
            "per class, called by number or name"
        },
    )
    latents: str = field(
        default="",
        metadata={
            "help": ".safetensors with `latents` [N, C, H, W], scaled as the denoiser takes them, "
            "and, of a class-conditional model, `labels` [N]"
        },
    )
    prompts: str = field(
        default="",
        metadata={"help": "text file, one prompt per line; text-to-image pipelines need it"},
    )
    loss: str = field(
        default="distill",
        metadata={
            "help": "distill: distance to the uncompressed model's output on the same input; ddpm: "
            "noise prediction and, where it is learned, variance; flow: flow matching"
        },
    )
    trajectories: int = field(
        default=0,
        metadata={
            "help": "images that the uncompressed model draws without --images and --latents; the "
            "inputs of its denoiser on the way are what is looked at; 0: 64 to calibrate, 16 to "
            "compress"
        },
    )
    sampling_steps: int = field(
        default=0,
        metadata={"help": "denoising steps of a trajectory; 0: as many as `dpq sample` takes"},
    )
    guidance: float | None = field(
        default=None,
        metadata={"help": "classifier-free guidance of trajectories; default: as `dpq sample`"},
    )
    class_dropout: float = field(
        default=0.1,
        metadata={"help": "share of images whose class is left out, where the model has a null"},
    )
    batch_size: int = field(default=32, metadata={"help": "noisy images of one step"})
    validation_samples: int = field(
        default=128,
        metadata={"help": "noisy images that training never sees, rounded up to whole batches"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if self.loss not in LOSSES:
            raise SpecError(f"must be one of {', '.join(LOSSES)}", option="loss", value=self.loss)
        if bool(self.images) + bool(self.latents) + bool(self.prompts) > 1:
            raise SpecError(
                "more than one source of training inputs is given",
                Hint.of("choose one of {}, {} and {}", images=ANY, latents=ANY, prompts=ANY),
            )
        for name, least in (
            ("trajectories", 0),
            ("sampling_steps", 0),
            ("batch_size", 1),
            ("validation_samples", 1),
        ):
            _check_at_least(name, getattr(self, name), least)
        _check_guidance(self.guidance)
        if not 0 <= self.class_dropout <= 1:
            raise SpecError("must be 0..1", option="class_dropout", value=self.class_dropout)

    @property
    def validation_batches(self) -> int:
        """The number of validation batches, which are all of one size."""
        return -(-self.validation_samples // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options of sampling: the images to draw, and the settings to draw them by."""

    label: tuple[str, ...] = field(default=(), metadata={"help": _LABEL})
    prompt: tuple[str, ...] = field(default=(), metadata={"help": _PROMPT})
    sampling_steps: int = field(default=0, metadata={"help": _STEPS})
    guidance: float | None = field(default=None, metadata={"help": _GUIDANCE})
    scheduler: str = field(default="auto", metadata={"help": _SCHEDULER})
    guided_channels: int = field(default=0, metadata={"help": _CHANNELS})
    count: int = field(
        default=0,
        metadata={"help": "images to draw in all; 0: one row of the grid per class or prompt"},
    )
    columns: int = field(default=8, metadata={"help": "images per row of the grid"})
    batch_size: int = field(default=16, metadata={"help": _BATCH})
    baseline: str = field(
        default="",
        metadata={
            "help": "the uncompressed model, or its folder of samples, to show at the same seeds "
            "in a before/after grid"
        },
    )
    npz: bool = field(
        default=False, metadata={"help": "also write samples.npz, as the ADM evaluator reads it"}
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_sampler(self.sampling_steps, self.guidance, self.scheduler, self.guided_channels)
        _check_at_least("count", self.count, 0)
        _check_at_least("columns", self.columns, 1)
        _check_at_least("batch_size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of evaluation: the samples to draw, and what they are compared with."""

    count: int = field(default=256, metadata={"help": "images to draw in all"})
    label: tuple[str, ...] = field(default=(), metadata={"help": _LABEL})
    prompt: tuple[str, ...] = field(default=(), metadata={"help": _PROMPT})
    sampling_steps: int = field(default=0, metadata={"help": _STEPS})
    guidance: float | None = field(default=None, metadata={"help": _GUIDANCE})
    scheduler: str = field(default="auto", metadata={"help": _SCHEDULER})
    guided_channels: int = field(default=0, metadata={"help": _CHANNELS})
    batch_size: int = field(default=16, metadata={"help": _BATCH})
    folder: str = field(
        default="",
        metadata={"help": "keep the samples here; those of an earlier run are not drawn again"},
    )
    reference_stats: str = field(
        default="",
        metadata={
            "help": "what samples are compared with: ADM .npz, .safetensors statistics or a folder "
            "of .png; by default what ships with a builtin model"
        },
    )
    inception: str = field(
        default="", metadata={"help": "weights for FID, sFID and IS: a path, or `download`"}
    )
    baseline: str = field(
        default="",
        metadata={
            "help": "the uncompressed model, or its folder of samples, to compare with at the same "
            f"seeds; by default the source of the artifact; {NONE}: no comparison"
        },
    )
    baseline_count: int = field(
        default=32, metadata={"help": "how many of the images are compared with the baseline's"}
    )

    def __post_init__(self) -> None:
        """Check every field."""
        _check_sampler(self.sampling_steps, self.guidance, self.scheduler, self.guided_channels)
        _check_at_least("count", self.count, 2)
        _check_at_least("batch_size", self.batch_size, 1)
        _check_at_least("baseline_count", self.baseline_count, 1)


def _check_sampler(steps: int, guidance: float | None, scheduler: str, channels: int) -> None:
    if scheduler not in SCHEDULERS:
        hint = nearest(scheduler, SCHEDULERS, most=1)
        raise SpecError(
            f"unknown scheduler; {hint}known: {', '.join(SCHEDULERS)}",
            option="scheduler",
            value=scheduler,
        )
    _check_at_least("sampling_steps", steps, 0)
    _check_at_least("guided_channels", channels, 0)
    _check_guidance(guidance)


def _check_guidance(guidance: float | None) -> None:
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
        raise SpecError("must be a number of 0 or more", option="guidance", value=guidance)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise SpecError(f"must be {least} or more", option=name, value=value)
