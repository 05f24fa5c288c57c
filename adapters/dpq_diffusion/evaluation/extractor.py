"""What a feature extractor is: images in, feature vectors out."""

from __future__ import annotations

from typing import NotRequired, Protocol, TypedDict

from torch import Tensor

ADM_EXTRACTOR = "adm-inception-v3"
"""The extractor whose Frechet distance may be called FID: Inception-v3 with the 2015 weights."""


class Features(TypedDict):
    """What an extractor returns for N images, on its own device.

    Keys:
        pool: ``[N, D]``, for the Frechet distance, precision and recall.
        spatial: ``[N, S]``, for the spatial Frechet distance; left out or None without one.
        logits: ``[N, C]``, for the Inception score; left out or None without one.
    """

    pool: Tensor
    spatial: NotRequired[Tensor | None]
    logits: NotRequired[Tensor | None]


class FeatureExtractor(Protocol):
    """Anything that turns images into feature vectors.

    Features of different extractors are never comparable, so every number carries the name.
    """

    @property
    def name(self) -> str:
        """Unique and stable: a name stands for one network with one set of weights."""

    def features(self, images: Tensor) -> Features:
        """Features of uint8 images ``[N, H, W, 3]`` on the CPU; deterministic, no gradients."""
