"""Fashion-MNIST (Zalando Research, MIT licence), read from its four official ``idx`` files."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Class names in the order of the labels."""

SHOES = (5, 7, 9)
"""All shoes of the data set point to the left, so these classes are never mirrored."""

SIDE = 28
_IMAGE_MAGIC, _LABEL_MAGIC = 0x00000803, 0x00000801
_PREFIXES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Split:
    """One split of the data set.

    Attributes:
        images: uint8 of shape (N, 28, 28), 0 is the background.
        labels: int64 of shape (N,).
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)


def load_split(folder: Path, name: str) -> Split:
    """Reads one split.

    Args:
        folder: Folder with the four ``*-ubyte.gz`` files.
        name: ``train`` (60,000 images) or ``test`` (10,000).

    Returns:
        The split.

    Raises:
        ValueError: A file is not what its name says.
    """
    prefix = _PREFIXES[name]
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", _IMAGE_MAGIC)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", _LABEL_MAGIC)
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels):
        raise ValueError(f"{folder}: {images.shape} images do not match {labels.shape} labels")
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """Maps uint8 images of shape (N, 28, 28) to float32 in [-1, 1] of shape (N, 1, 28, 28)."""
    return images.unsqueeze(1).float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Maps images in [-1, 1] of shape (N, 1, 28, 28) to uint8 of shape (N, 28, 28)."""
    return ((images.squeeze(1).float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def mirror(images: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirrors half of the images whose class has no preferred direction.

    Args:
        images: Shape (N, 1, 28, 28).
        labels: Shape (N,).
        rng: Decides which.

    Returns:
        The images, some of them mirrored.
    """
    chosen = torch.from_numpy(rng.random(len(labels)) < 0.5)
    chosen &= ~torch.isin(labels, torch.tensor(SHOES))
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def epoch_batch(split: Split, step: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks a training batch as a pure function of the step, so that a resumed run continues.

    Args:
        split: The training split.
        step: Index of the training step.
        size: Images per batch; the rest of an epoch that fills no batch is dropped.
        seed: Seed of the order and of the mirroring.

    Returns:
        Images in [-1, 1] of shape (size, 1, 28, 28) and labels of shape (size,).
    """
    epoch, index = divmod(step, len(split) // size)
    order = np.random.default_rng([seed, epoch]).permutation(len(split))
    picks = torch.from_numpy(order[index * size : (index + 1) * size])
    labels = split.labels[picks]
    images = to_model_range(split.images[picks])
    return mirror(images, labels, np.random.default_rng([seed, epoch, index])), labels


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """Reads a gzipped ``idx`` file of bytes: magic, sizes (big-endian uint32), content."""
    content = gzip.decompress(path.read_bytes())
    found = int.from_bytes(content[:4], "big")
    rank = magic & 0xFF
    shape = tuple(np.frombuffer(content, ">u4", rank, 4).tolist())
    if found != magic or len(content) != 4 + 4 * rank + int(np.prod(shape)):
        raise ValueError(f"{path}: not an idx file of {rank} dimensions (magic {found:#010x})")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
