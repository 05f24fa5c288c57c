"""A small classifier as feature extractor, for machines without Inception weights."""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_diffusion.metrics.extractor import Features
from dpq_diffusion.tiny_classifier import TinyClassifier

TINY_EXTRACTOR = "tiny-classifier"


class ClassifierExtractor:
    """Penultimate activations and logits of a `TinyClassifier`; it has no spatial features.

    Args:
        model: with its weights loaded.
        name: what the numbers are called after.
        device: where it runs.
    """

    def __init__(
        self,
        model: TinyClassifier,
        *,
        name: str = TINY_EXTRACTOR,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Features:
        """Features of uint8 images ``[N, H, W, 3]``; a grey model sees the mean of the channels.

        Raises:
            SpecError: another image size than the classifier's.
        """
        config = self._model.config
        if images.shape[1:3] != (config.image_size, config.image_size):
            raise SpecError(
                f"extractor {self.name} takes {config.image_size}x{config.image_size} images, not "
                f"{images.shape[1]}x{images.shape[2]}; use the Inception extractor"
            )
        x = images.to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if config.in_channels == 1:
            x = x.mean(1, keepdim=True)
        pool = self._model.features(x)
        return {"pool": pool, "spatial": None, "logits": self._model.head(pool)}
