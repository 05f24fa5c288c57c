"""The interface of feature extractors, which turn images into feature vectors."""

from __future__ import annotations

from typing import NotRequired, Protocol, TypedDict

from torch import Tensor

ADM_EXTRACTOR = "adm-inception-v3"
"""The extractor whose Frechet distance may be called FID: Inception-v3 with the 2015 weights."""


class Features(TypedDict):
    """The features of N images, on the extractor's device.

    Keys:
        pool: ``[N, D]``, for the Frechet distance, precision and recall.
        spatial: ``[N, S]``, for the spatial Frechet distance; left out or None without one.
        logits: ``[N, C]``, for the Inception score; left out or None without one.
    """

    pool: Tensor
    spatial: NotRequired[Tensor | None]
    logits: NotRequired[Tensor | None]


class FeatureExtractor(Protocol):
    """A network that turns images into feature vectors.

    Features of different extractors are never comparable, so every number carries the name.
    """

    @property
    def name(self) -> str:
        """The unique and stable name of one network with one set of weights."""

    def features(self, images: Tensor) -> Features:
        """The features of uint8 images ``[N, H, W, 3]``, which lie on the CPU; deterministic."""
