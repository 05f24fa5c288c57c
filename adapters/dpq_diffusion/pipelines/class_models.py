"""The classes that a pipeline draws, and the arguments that tell its denoiser of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dpq_core.errors import SourceError
from dpq_diffusion.pipelines.conditions import class_names
from dpq_diffusion.pipelines.denoising import Conditioning, label_arguments

_BY_LABEL = ("DiTTransformer2DModel", "Transformer2DModel", "UNet2DModel")

_AUTOENCODERS = ("vae", "vqvae", "movq")


@dataclass(frozen=True, kw_only=True)
class ClassModel:
    """A denoiser of classes, or an unconditional one, with what it takes to draw images.

    Attributes:
        model: the denoiser.
        vae: the autoencoder; None where the denoiser works on pixels.
        count: number of classes; 0: unconditional.
        null: label that stands for "no class"; None: there is none to guide with.
        condition: makes the denoiser's arguments for labels.
    """

    model: Any
    vae: Any = None
    count: int = 0
    null: int | None = None
    condition: Conditioning = label_arguments

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the denoiser's input."""
        size = self.model.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.model.config.in_channels, height, width


def class_model(pipeline: Any) -> ClassModel:
    """The class-conditional or unconditional model of a pipeline.

    Raises:
        SourceError: its denoiser is of another kind.
    """
    model = denoiser(pipeline)
    autoencoders = (getattr(pipeline, name, None) for name in _AUTOENCODERS)
    vae = next((one for one in autoencoders if one is not None), None)
    embedder = getattr(pipeline, "class_embedder", None)
    if embedder is not None:
        null = pipeline.config.get("null_class")
        count = embedder.config.num_embeddings if null is None else null
        condition = _context_arguments(embedder)
        return ClassModel(model=model, vae=vae, count=count, null=null, condition=condition)
    if type(model).__name__ not in _BY_LABEL:
        raise SourceError(
            f"a {type(pipeline).__name__} with a {type(model).__name__} cannot be sampled by dpq; "
            "DiT, UNet2D, class-conditional LDM and text-to-image pipelines can"
        )
    count, null = _classes(model, len(class_names(pipeline)))
    return ClassModel(model=model, vae=vae, count=count, null=null)


def denoiser(pipeline: Any) -> Any:
    """The transformer or UNet of a pipeline.

    Raises:
        SourceError: it has neither.
    """
    for name in ("transformer", "unet"):
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    raise SourceError(f"{type(pipeline).__name__} has no transformer and no unet")


def _context_arguments(embedder: Any) -> Conditioning:
    """The arguments that tell a UNet with spatial transformers of classes: one context token."""

    def context(labels: Tensor) -> Mapping[str, Tensor]:
        return {"encoder_hidden_states": embedder(labels)}

    return context


def _classes(model: Any, names: int) -> tuple[int, int | None]:
    """The number of classes (0: unconditional) and the null class, which is the row after them."""
    embeds = model.config.get("num_embeds_ada_norm")
    if embeds is not None:  # a DiT: diffusers always adds the row of the null class
        return embeds, embeds
    rows = model.config.get("num_class_embeds") or 0
    return (names, names) if 0 < names < rows else (rows, None)
