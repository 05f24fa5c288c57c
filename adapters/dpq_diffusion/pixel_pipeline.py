"""PixelDiTPipeline: a class-conditional DiT that works on pixels, for any number of classes.

Importing this module imports diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import diffusers  # noqa: TID253 - the base class
import torch
from diffusers.utils.torch_utils import randn_tensor  # noqa: TID253

from dpq_diffusion.conditions import class_conditions, class_names
from dpq_diffusion.denoising import Guidance, class_predictor, decode, keeps_variance, reverse
from dpq_diffusion.schedulers import make_scheduler

if TYPE_CHECKING:  # the base class is untyped and sets its attributes by name
    from typing import Any as DiffusionPipeline

    ImagePipelineOutput: Any
else:
    from diffusers import DiffusionPipeline, ImagePipelineOutput


class PixelDiTPipeline(DiffusionPipeline):  # type: ignore[misc]
    """What ``model_index.json`` of ``builtin:tiny-dit`` names.

    Unlike ``DiTPipeline`` it has no autoencoder, keeps ``id2label`` when it is saved, and takes
    for the null class what the model has there, not 1000.

    Args:
        transformer: a ``DiTTransformer2DModel``.
        scheduler: of diffusers.
        id2label: class number (as a string) -> name.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(
        self, transformer: Any, scheduler: Any, id2label: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(id2label=None if id2label is None else dict(id2label))

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Class numbers of names.

        Raises:
            SpecError: an unknown name.
        """
        words = [label] if isinstance(label, str) else label
        classes = self.transformer.config.num_embeds_ada_norm
        found = class_conditions(words, classes, class_names(self), few=False)
        return [one.label for one in found if one.label is not None]

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
            guidance_scale: of classifier-free guidance; 1 is none.
            generator: one, or one per image.
            num_inference_steps: denoising steps.
            output_type: ``pil``, ``np`` (float ``[n, H, W, C]``) or ``pt`` (``[n, C, H, W]``),
                the latter two in [0, 1].
            return_dict: else a tuple.
        """
        model, device = self.transformer, self._execution_device
        scheduler = make_scheduler(self.scheduler, "auto", learned_variance=True)
        size = model.config.sample_size
        shape = (len(class_labels), model.config.in_channels, size, size)
        labels = torch.tensor(class_labels, device=device)
        guidance = Guidance(scale=guidance_scale, null=model.config.num_embeds_ada_norm)
        variance = keeps_variance(scheduler, model)
        latents = reverse(
            class_predictor(model, labels, guidance, variance=variance),
            randn_tensor(shape, generator=generator, device=device, dtype=torch.float32),
            scheduler,
            num_inference_steps,
            generator,
        )
        pixels = decode(latents, None).permute(0, 3, 1, 2).float() / 255
        self.maybe_free_model_hooks()
        images: Any = pixels
        if output_type != "pt":
            images = pixels.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


# Where DiffusionPipeline.from_pretrained looks for the class that an index names.
diffusers.PixelDiTPipeline = PixelDiTPipeline  # type: ignore[attr-defined]
