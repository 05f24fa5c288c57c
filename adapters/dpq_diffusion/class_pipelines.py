"""Pipelines that diffusers lacks: a DiT on pixels, and class-conditional latent diffusion.

Importing this module imports diffusers. All are in one module because diffusers, when it is
imported, imports it again (registration.py); and it is not in `pipelines` because folders on disk
name it: ``model_index.json`` of a converted class-conditional LDM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import diffusers  # noqa: TID253 - the base classes
import torch
from diffusers.utils.torch_utils import randn_tensor  # noqa: TID253
from torch import Tensor, nn

from dpq_diffusion.pipelines.class_models import class_model
from dpq_diffusion.pipelines.conditions import class_conditions, class_names
from dpq_diffusion.pipelines.denoising import (
    Guidance,
    class_predictor,
    decode,
    keeps_variance,
    reverse_process,
)
from dpq_diffusion.pipelines.schedulers import make_scheduler

if TYPE_CHECKING:  # the base classes are untyped and set attributes by name
    from typing import Any as ConfigMixin
    from typing import Any as DiffusionPipeline
    from typing import Any as ModelMixin

    ImagePipelineOutput: Any
    register_to_config: Any
else:
    from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
    from diffusers.configuration_utils import register_to_config


class ClassPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline that draws classes by number or name, whatever their count and null class."""

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """The class numbers of one or more class names.

        Raises:
            SpecError: an unknown name.
        """
        words = [label] if isinstance(label, str) else label
        conditions = class_conditions(words, class_model(self).count, class_names(self), few=False)
        return [one.label for one in conditions if one.label is not None]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        guidance_scale: float = 1.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw one image per class label.

        Args:
            class_labels: class numbers.
            guidance_scale: scale of classifier-free guidance; 1 is none.
            generator: one, or one per image.
            num_inference_steps: denoising steps.
            output_type: ``pil``, ``np`` (float ``[n, H, W, C]``) or ``pt`` (``[n, C, H, W]``),
                the latter two in [0, 1].
            return_dict: else a tuple.
        """
        class_denoiser, device = class_model(self), self._execution_device
        scheduler = make_scheduler(self.scheduler, "auto", learned_variance=True)
        shape = (len(class_labels), *class_denoiser.shape)
        predict = class_predictor(
            class_denoiser.model,
            torch.tensor(class_labels, device=device),
            Guidance(scale=guidance_scale, null=class_denoiser.null),
            variance=keeps_variance(scheduler, class_denoiser.model),
            condition=class_denoiser.condition,
        )
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = reverse_process(predict, noise, scheduler, num_inference_steps, generator)
        pixels = decode(latents, class_denoiser.vae).permute(0, 3, 1, 2).float() / 255
        self.maybe_free_model_hooks()
        images: Any = pixels
        if output_type != "pt":
            images = pixels.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


class PixelDiTPipeline(ClassPipeline):
    """A pipeline for a DiT that works on pixels, such as ``builtin:tiny-dit``.

    Unlike ``DiTPipeline`` it has no autoencoder, keeps ``id2label`` when it is saved, and takes
    for the null class what the model has there, not 1000.

    Args:
        transformer: a ``DiTTransformer2DModel``.
        scheduler: a scheduler of diffusers.
        id2label: class number (as a string) -> name.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(
        self, transformer: Any, scheduler: Any, id2label: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(id2label=None if id2label is None else dict(id2label))


class ClassEmbedder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """An embedding that makes of each class a context of one token.

    Args:
        num_embeddings: classes, the null class counted.
        embedding_dim: width of the UNet's context.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_embeddings: int = 1001, embedding_dim: int = 512) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(num_embeddings, embedding_dim)

    def forward(self, labels: Tensor) -> Tensor:
        """The context ``[n, 1, embedding_dim]`` of labels int64 ``[n]``."""
        context: Tensor = self.class_embedding(labels)[:, None]
        return context


class ClassLDMPipeline(ClassPipeline):
    """A pipeline for a UNet that attends to a class in latents, such as CompVis' cin256-v2.

    Args:
        vqvae: ``VQModel`` or ``AutoencoderKL``.
        class_embedder: an embedder of the model's classes.
        unet: a ``UNet2DConditionModel``.
        scheduler: a scheduler of diffusers.
        null_class: label that stands for "no class"; None: no guidance.
        id2label: class number (as a string) -> name.
    """

    model_cpu_offload_seq = "class_embedder->unet->vqvae"

    def __init__(
        self,
        vqvae: Any,
        class_embedder: ClassEmbedder,
        unet: Any,
        scheduler: Any,
        null_class: int | None = None,
        id2label: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vqvae=vqvae, class_embedder=class_embedder, unet=unet, scheduler=scheduler
        )
        names = None if id2label is None else dict(id2label)
        self.register_to_config(null_class=null_class, id2label=names)


# Where DiffusionPipeline.from_pretrained looks for the class that an index names.
diffusers.PixelDiTPipeline = PixelDiTPipeline  # type: ignore[attr-defined]
diffusers.ClassLDMPipeline = ClassLDMPipeline  # type: ignore[attr-defined]
