"""What a training run of ``builtin:tiny-dit`` was asked to do, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What the model card says about data and training.

    Attributes:
        layers: Transformer blocks.
        steps: Planned number of steps.
        batch: Images per step.
        peak: Peak learning rate.
        decay: Share of the steps in the decay.
        train_images: Images of the training split.
    """

    layers: int
    steps: int
    batch: int
    peak: float
    decay: float
    train_images: int


@dataclass
class Progress:
    """State of a run besides weights and optimizer.

    Attributes:
        step: Number of steps taken.
        seconds: Wall time spent in training so far.
        log: One row per so many steps.
    """

    step: int
    seconds: float
    log: list[dict[str, float]]
