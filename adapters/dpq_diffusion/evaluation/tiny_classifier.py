"""The small Fashion-MNIST classifier of ``builtin:tiny-dit``, and the feature extractor made of it.

Fréchet distance, precision and recall need features of images. Where no Inception weights are
given, those of this network are used; a number made with them names it as its extractor.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dpq_core.errors import SourceError, SpecError
from dpq_diffusion.evaluation.extractor import Features

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ARCHITECTURE = "TinyClassifier"
TINY_EXTRACTOR = "tiny-classifier"


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a `TinyClassifier`.

    Attributes:
        image_size: height and width of its images, in pixels; divisible by 4.
        in_channels: channels of its images.
        widths: output channels of its three convolutions.
        feature_dim: length of a feature vector.
        num_classes: number of classes.
    """

    image_size: int = 28
    in_channels: int = 1
    widths: tuple[int, int, int] = (32, 64, 96)
    feature_dim: int = 64
    num_classes: int = 10


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution that keeps height and width, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class TinyClassifier(nn.Module):
    """A network of three convolutions with max pooling, a residual one, and two linear layers."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        self.config = config
        self.stage1 = _conv(config.in_channels, first)
        self.stage2 = _conv(first, second)
        self.stage3 = _conv(second, third)
        self.residual = _conv(third, third)
        self.pool = nn.MaxPool2d(2)
        side = config.image_size // 8
        self.embed = nn.Linear(third * side * side, config.feature_dim)
        self.head = nn.Linear(config.feature_dim, config.num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The penultimate activations, which serve as features.

        Args:
            images: float ``[n, in_channels, image_size, image_size]`` in [-1, 1].

        Returns:
            Float ``[n, feature_dim]``, not negative.
        """
        hidden = self.pool(self.stage1(images))
        hidden = self.pool(self.stage2(hidden))
        hidden = self.stage3(hidden)
        hidden = self.pool(hidden + self.residual(hidden))
        return torch.relu(self.embed(hidden.flatten(1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits ``[n, num_classes]`` of images as in `features`."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def save_classifier(model: TinyClassifier, folder: Path) -> None:
    """Write configuration and float32 weights into a folder.

    Args:
        model: the classifier.
        folder: created where missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"architecture": ARCHITECTURE, **asdict(model.config)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(tensors))


def load_classifier(folder: Path) -> TinyClassifier:
    """Read what `save_classifier` wrote, ready for evaluation (``eval()``, float32, CPU).

    Raises:
        SourceError: a file is missing, damaged, or does not describe a `TinyClassifier`.
    """
    config = _read_config(folder / CONFIG)
    model = TinyClassifier(config)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = " ".join(str(error).split())
        raise SourceError(f"{folder / WEIGHTS}: not the weights of {config}: {cause}") from error
    return model.eval()


def _read_config(path: Path) -> ClassifierConfig:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: not a readable classifier configuration: {error}") from error
    keys = {field.name for field in fields(ClassifierConfig)} | {"architecture"}
    if not isinstance(content, dict) or content.keys() != keys:
        raise SourceError(f"{path}: expected exactly the keys {', '.join(sorted(keys))}")
    if content.pop("architecture") != ARCHITECTURE:
        raise SourceError(f"{path}: the architecture is not {ARCHITECTURE}")
    widths = content["widths"]
    sizes = [value for key, value in content.items() if key != "widths"]
    if not isinstance(widths, list) or len(widths) != 3:
        raise SourceError(f"{path}: 'widths' is not a list of three sizes")
    if any(type(size) is not int or not 0 < size <= 4096 for size in [*sizes, *widths]):
        raise SourceError(f"{path}: every size is an integer from 1 to 4096")
    return ClassifierConfig(**{**content, "widths": tuple(widths)})


class ClassifierExtractor:
    """An extractor of the activations and logits of a `TinyClassifier`; no spatial features.

    Args:
        model: the classifier with its weights loaded.
        name: name of the extractor in reports.
        device: device that it runs on.
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
