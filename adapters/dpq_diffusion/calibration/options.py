"""Options of ``dpq calibrate`` for diffusion models."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dpq_core.errors import SpecError

LOSSES = ("distill", "ddpm", "flow")


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What the denoiser sees while it is trained, and what its answers are held against."""

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
        default=64,
        metadata={
            "help": "images that the uncompressed model draws without --images and --latents; the "
            "inputs of its denoiser on the way are what is trained on"
        },
    )
    denoising_steps: int = field(
        default=0, metadata={"help": "steps of a trajectory; 0: as many as `dpq sample` takes"}
    )
    guidance: float | None = field(
        default=None,
        metadata={"help": "classifier-free guidance of trajectories; default: as `dpq sample`"},
    )
    class_dropout: float = field(
        default=0.1,
        metadata={"help": "share of images whose class is left out, where the model has a null"},
    )
    batch: int = field(default=32, metadata={"help": "noisy images of one step"})
    validation_samples: int = field(
        default=128,
        metadata={"help": "noisy images that training never sees, rounded up to whole batches"},
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if self.loss not in LOSSES:
            raise SpecError(f"option --loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if bool(self.images) + bool(self.latents) + bool(self.prompts) > 1:
            raise SpecError("--images, --latents and --prompts exclude each other; choose one")
        for name, least in (
            ("trajectories", 1),
            ("denoising_steps", 0),
            ("batch", 1),
            ("validation_samples", 1),
        ):
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise SpecError(f"option {flag} must be {least} or more")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise SpecError("option --guidance must be a number of 0 or more")
        if not 0 <= self.class_dropout <= 1:
            raise SpecError("option --class-dropout must be 0..1")

    @property
    def validation_batches(self) -> int:
        """Batches for validation, all of one size, as the loop wants them."""
        return -(-self.validation_samples // self.batch)
