"""Samples of ``builtin:tiny-dit`` and their quality, as measured for its model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from fashion_mnist import Split, to_model_range, to_uint8
from PIL import Image
from tiny_dit_model import NULL_CLASS, NUM_CLASSES

from dpq_diffusion.evaluation.tiny_classifier import TinyClassifier

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, SchedulerMixin


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; 1 is none.
        per_class: Images per class.
        seed: Seed of the initial noise.
        batch: Images denoised at once; the result depends on it only by rounding.
    """

    steps: int = 50
    guidance: float = 1.5
    per_class: int = 50
    seed: int = 0
    batch: int = 100


@torch.no_grad()
def sample(
    model: DiTTransformer2DModel,
    scheduler: SchedulerMixin,
    labels: torch.Tensor,
    how: Sampling,
) -> torch.Tensor:
    """Samples one image per label.

    Args:
        model: Predicts velocity in its first output channel and the variance in its second.
        scheduler: A diffusers scheduler that heeds the first only, such as DDIM.
        labels: Class labels, shape (N,).
        how: The settings.

    Returns:
        Images clipped to [-1, 1], shape (N, 1, 28, 28).
    """
    side = model.config.sample_size
    generator = torch.Generator().manual_seed(how.seed)
    noise = torch.randn(len(labels), model.config.in_channels, side, side, generator=generator)
    parts = zip(noise.split(how.batch), labels.split(how.batch), strict=True)
    return torch.cat([_denoise(model, scheduler, images, part, how) for images, part in parts])


def _denoise(
    model: DiTTransformer2DModel,
    scheduler: SchedulerMixin,
    images: torch.Tensor,
    labels: torch.Tensor,
    how: Sampling,
) -> torch.Tensor:
    """Runs the reverse process on one batch of noise."""
    guided = how.guidance != 1.0
    classes = torch.cat([labels, torch.full_like(labels, NULL_CLASS)]) if guided else labels
    scheduler.set_timesteps(how.steps)
    images = images * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        doubled = torch.cat([images, images]) if guided else images
        doubled = scheduler.scale_model_input(doubled, step)
        output = model(doubled, timestep=step.expand(len(doubled)), class_labels=classes).sample
        velocity = output[:, : images.shape[1]]
        if guided:
            conditional, unconditional = velocity.chunk(2)
            velocity = unconditional + how.guidance * (conditional - unconditional)
        images = scheduler.step(velocity, step, images).prev_sample
    return images.clamp(-1.0, 1.0)


def balanced_labels(per_class: int) -> torch.Tensor:
    """Returns ``per_class`` labels of each class, class by class."""
    return torch.arange(NUM_CLASSES).repeat_interleave(per_class)


def agreement(
    classifier: TinyClassifier, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Share of images, per class, that the classifier takes for the class asked for.

    Args:
        classifier: The judge.
        images: In [-1, 1], shape (N, 1, 28, 28).
        labels: The classes asked for, shape (N,).

    Returns:
        float64 [NUM_CLASSES].
    """
    with torch.no_grad():
        hits = (classifier(images).argmax(1) == labels).double()
    return torch.stack([hits[labels == label].mean() for label in range(NUM_CLASSES)])


@torch.no_grad()
def accuracy(classifier: TinyClassifier, split: Split) -> float:
    """Share of a split's images that the classifier gets right."""
    parts = zip(split.images.split(500), split.labels.split(500), strict=True)
    hits = [classifier(to_model_range(images)).argmax(1) == labels for images, labels in parts]
    return torch.cat(hits).double().mean().item()


def quantized_to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Rounds images in [-1, 1] to the 256 levels an image file holds."""
    return to_uint8(images).unsqueeze(1).float() / 127.5 - 1.0


def save_grid(path: Path, images: torch.Tensor, columns: int, scale: int = 2) -> None:
    """Writes images as one PNG, row by row, with a margin between them.

    Args:
        path: The PNG file.
        images: In [-1, 1], shape (N, 1, H, W).
        columns: Images per row; N is a multiple of it.
        scale: Size of a pixel.
    """
    pixels = torch.nn.functional.pad(to_uint8(images), [1, 1, 1, 1], value=48)
    rows = [torch.cat(list(row), dim=1) for row in pixels.split(columns)]
    grid = torch.cat(rows).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    Image.fromarray(grid.numpy()).save(path, optimize=True)
