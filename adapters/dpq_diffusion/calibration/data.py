"""Images and latents read from files, for training a class-conditional denoiser."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Progress, silent
from dpq_diffusion.pipelines.class_models import ClassModel, class_model
from dpq_diffusion.pipelines.conditions import class_conditions, class_names
from dpq_diffusion.pipelines.denoising import activation_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_ENCODED_AT_ONCE = 16
"""Number of images that the autoencoder encodes at a time."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Latents of images and their classes, as a denoiser is trained on them.

    Attributes:
        latents: float32 ``[N, C, H, W]``, scaled as the denoiser takes them.
        labels: int64 ``[N]``; None for an unconditional model.
        what: description of the data for people.
        fingerprint: hash of the values that were read.
    """

    latents: Tensor
    labels: Tensor | None
    what: str
    fingerprint: str


def read_latents(path: Path, model: ClassModel) -> TrainingData:
    """Read the latents and labels of a safetensors file.

    Raises:
        SourceError: it cannot be read, or lacks something.
        SpecError: it does not fit the model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = {"latents", "labels"}.intersection(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise SourceError(f"cannot be read ({error})", option="latents", value=path) from None
    if "latents" not in tensors:
        raise SourceError("holds no tensor `latents`", option="latents", value=path)
    latents, labels = tensors["latents"].float(), tensors.get("labels")
    if tuple(latents.shape[1:]) != model.shape or not len(latents):
        raise SpecError(
            f"latents are {list(latents.shape)}, the denoiser takes "
            f"[N, {', '.join(map(str, model.shape))}]",
            option="latents",
            value=path,
        )
    if not bool(latents.isfinite().all()):
        raise SpecError("latents hold NaN or infinity", option="latents", value=path)
    if model.count:
        labels = _check_labels(labels, len(latents), model.count, path)
    digest = hashlib.sha256(latents.numpy().tobytes())
    if labels is not None:
        digest.update(labels.long().numpy().tobytes())
    return TrainingData(
        latents=latents,
        labels=labels.long() if labels is not None and model.count else None,
        what=f"{len(latents):,} latents of {path.name}",
        fingerprint=digest.hexdigest(),
    )


def _check_labels(labels: Tensor | None, count: int, classes: int, path: Path) -> Tensor:
    if labels is None:
        message = "the model draws classes; add a tensor `labels` [N]"
        raise SpecError(message, option="latents", value=path)
    if labels.shape != (count,) or labels.is_floating_point():
        message = f"labels must be {count} whole numbers, one per latent"
        raise SpecError(message, option="latents", value=path)
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise SpecError(f"labels must be 0..{classes - 1}", option="latents", value=path)
    return labels


def read_images(
    folder: Path, pipeline: Any, seed: int, progress: Progress = silent
) -> TrainingData:
    """Read the images of a folder, and encode them with the pipeline's autoencoder if it has one.

    They are scaled and cut to the size that the model draws.

    Args:
        folder: the images, in a sub-folder per class where the model draws classes.
        pipeline: class-conditional or unconditional.
        seed: seed of the draws from an autoencoder's posterior.
        progress: counts images.

    Raises:
        SourceError: there are no images, or one cannot be read.
        SpecError: a sub-folder is no class of the model.
    """
    model = class_model(pipeline)
    if not folder.is_dir():
        raise SourceError("no such folder", option="images", value=folder)
    paths, labels = _list_images(folder, pipeline, model)
    channels, height, width = model.shape
    factor, grey = 1, channels == 1
    if model.vae is not None:
        factor = 2 ** (len(model.vae.config.block_out_channels) - 1)
        grey = model.vae.config.in_channels == 1
    digest = hashlib.sha256(repr([seed, labels]).encode())
    generator, parts = torch.Generator().manual_seed(seed), []
    for start in range(0, len(paths), _ENCODED_AT_ONCE):
        progress("reading images", start, len(paths))
        some = [
            _read_pixels(path, (factor * width, factor * height), grey=grey)
            for path in paths[start : start + _ENCODED_AT_ONCE]
        ]
        pixels = np.stack(some)
        digest.update(pixels.tobytes())
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(encode(batch, model.vae, generator))
    progress("reading images", len(paths), len(paths))
    return TrainingData(
        latents=torch.cat(parts),
        labels=torch.tensor(labels) if model.count else None,
        what=f"{len(paths):,} images of {folder.name}",
        fingerprint=digest.hexdigest(),
    )


def _list_images(folder: Path, pipeline: Any, model: ClassModel) -> tuple[list[Path], list[int]]:
    """Image files and their classes (0 for an unconditional model), ordered by class and name."""
    if not model.count:
        unlabelled = _image_paths(folder)
        return unlabelled, [0] * len(unlabelled)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not names:
        message = "no sub-folders; the model wants one per class"
        raise SourceError(message, option="images", value=folder)
    paths: list[Path] = []
    labels: list[int] = []
    for name, label in zip(names, _class_labels(names, pipeline, model, folder), strict=True):
        of_class = _image_paths(folder / name)
        paths += of_class
        labels += [label] * len(of_class)
    return paths, labels


def _image_paths(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not paths:
        raise SourceError(f"no images ({', '.join(_SUFFIXES)})", option="images", value=folder)
    return paths


def _class_labels(
    names: Sequence[str], pipeline: Any, model: ClassModel, folder: Path
) -> list[int]:
    """The classes of sub-folders, by number or name.

    Where no name is known but there are as many folders as classes, alphabetical order counts.
    """
    try:
        conditions = class_conditions(names, model.count, class_names(pipeline), few=False)
    except SpecError as error:
        numbered = any(name.lstrip("-").isdecimal() for name in names)
        if len(names) == model.count and not numbered:
            return list(range(model.count))  # as torchvision's ImageFolder and the DiT code have it
        message = f"sub-folder {error.value!r}: {error.message}"
        raise SpecError(message, option="images", value=folder) from None
    return [one.label for one in conditions if one.label is not None]


def _read_pixels(path: Path, size: tuple[int, int], *, grey: bool) -> NDArray[np.uint8]:
    """An image file as uint8 ``[H, W, C]``, scaled and cropped around its centre."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            whole = image.convert("L" if grey else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        raise SourceError(f"{path} cannot be read as an image", option="images") from None
    fitted = whole
    if whole.size != size:
        fitted = ImageOps.fit(whole, size, Image.Resampling.BICUBIC)
    values = np.asarray(fitted, dtype=np.uint8)
    return values[:, :, None] if grey else values


@torch.no_grad()
def encode(pixels: Tensor, vae: Any, generator: torch.Generator) -> Tensor:
    """Encode pixels ``[n, C, H, W]`` in [-1, 1] to float32 latents on the CPU; inverts ``decode``.

    Args:
        pixels: float32.
        vae: autoencoder of the pipeline; None where the denoiser takes pixels.
        generator: source of the draws from the posterior.
    """
    if vae is None:
        return pixels
    output = vae.encode(pixels.to(vae.device, activation_dtype(vae)))
    if hasattr(output, "latent_dist"):
        posterior = output.latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        latents = posterior.mean + posterior.std * noise
    else:
        latents = output.latents
    shift = vae.config.get("shift_factor") or 0.0
    scaled: Tensor = (latents.float() - shift) * vae.config.get("scaling_factor", 1.0)
    return scaled.cpu()
