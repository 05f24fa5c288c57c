"""Samplers, which draw images with a pipeline: of classes, unconditionally, or of prompts."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpq_core.errors import ANY, Hint, SourceError, SpecError
from dpq_diffusion.pipelines.class_models import class_model
from dpq_diffusion.pipelines.conditions import Condition, Item, class_conditions, class_names
from dpq_diffusion.pipelines.denoising import (
    Guidance,
    Trace,
    class_predictor,
    decode,
    generators,
    initial_noise,
    keeps_variance,
    no_trace,
    predicts_variance,
    reverse_process,
    to_uint8,
)
from dpq_diffusion.pipelines.schedulers import make_scheduler, scheduler_name

_STEPS = 50
_GUIDANCE = 1.5

_TEXT = "vae, text_encoder, tokenizer and scheduler"
_NEEDS = {
    "DiTTransformer2DModel": ("DiTPipeline", "transformer", "vae and scheduler"),
    "FluxTransformer2DModel": (
        "FluxPipeline",
        "transformer",
        "vae, text_encoder, text_encoder_2, their tokenizers and scheduler",
    ),
    "PixArtTransformer2DModel": ("PixArtAlphaPipeline", "transformer", _TEXT),
    "UNet2DConditionModel": ("StableDiffusionPipeline", "unet", _TEXT),
    "UNet2DModel": ("LDMPipeline", "unet", "vqvae and scheduler"),
}
"""Denoiser class -> a pipeline that it works in, its name there, and the other components."""

_PIXELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings by which images are drawn; equal for samples that can be compared.

    Attributes:
        scheduler: ``ddim`` and so on.
        steps: denoising steps.
        guidance: scale; 1 is none.
        guided_channels: 0 is all.
    """

    scheduler: str
    steps: int
    guidance: float
    guided_channels: int = 0

    def __str__(self) -> str:
        channels = f" on {self.guided_channels} channels" if self.guided_channels else ""
        return f"{self.scheduler}, {self.steps} steps, guidance {self.guidance:g}{channels}"


@dataclass(frozen=True, kw_only=True)
class RequestedSettings:
    """The settings that the user asked for; zeros and None leave the choice to the model."""

    steps: int = 0
    guidance: float | None = None
    scheduler: str = "auto"
    guided_channels: int = 0


class Sampler(ABC):
    """A pipeline that draws images by fixed settings."""

    def __init__(self, pipeline: Any, settings: Settings) -> None:
        self.pipeline = pipeline
        self.settings = settings

    @abstractmethod
    def conditions(
        self, labels: Sequence[str], prompts: Sequence[str], *, few: bool = False
    ) -> tuple[Condition, ...]:
        """The conditions to draw for the user's labels or prompts.

        Args:
            labels: class numbers or names; none: all classes.
            prompts: texts.
            few: a person will look at all images, so choose a few classes of many.
        """

    @abstractmethod
    def draw(self, items: Sequence[Item], trace: Trace = no_trace) -> Tensor:
        """Uint8 images ``[n, H, W, C]`` on the CPU; C is 1 or 3."""


def make_sampler(pipeline: Any, requested: RequestedSettings) -> Sampler:
    """The sampler for a pipeline, or for a denoiser that needs no other component.

    Raises:
        SpecError: an option does not fit the model.
        SourceError: nobody knows how to draw with such a pipeline.
    """
    if isinstance(pipeline, torch.nn.Module):
        pipeline = pipeline_of(pipeline)
    if "prompt" in inspect.signature(type(pipeline).__call__).parameters:
        return TextSampler(pipeline, requested)
    return ClassSampler(pipeline, requested)


class ClassSampler(Sampler):
    """The sampler of DiT, UNet2D and class-conditional LDM pipelines, on pixels or latents."""

    def __init__(self, pipeline: Any, requested: RequestedSettings) -> None:
        self._class_denoiser = class_denoiser = class_model(pipeline)
        if requested.guidance not in (None, 1) and class_denoiser.null is None:
            kind = "null class to guide with" if class_denoiser.count else "classes to guide by"
            message = f"the model has no {kind}; use 1"
            raise SpecError(message, option="guidance", value=requested.guidance)
        learned = predicts_variance(class_denoiser.model)
        scheduler = make_scheduler(
            pipeline.scheduler, requested.scheduler, learned_variance=learned
        )
        steps = requested.steps or _STEPS
        if steps > scheduler.config.num_train_timesteps:
            most = scheduler.config.num_train_timesteps
            message = f"the model was trained with {most} steps"
            raise SpecError(message, option="sampling_steps", value=steps)
        default = 1.0 if class_denoiser.null is None else _GUIDANCE
        settings = Settings(
            scheduler=scheduler_name(scheduler),
            steps=steps,
            guidance=default if requested.guidance is None else requested.guidance,
            guided_channels=requested.guided_channels,
        )
        super().__init__(pipeline, settings)
        self._scheduler = scheduler
        self._guidance = Guidance(
            scale=settings.guidance, channels=requested.guided_channels, null=class_denoiser.null
        )

    def conditions(
        self, labels: Sequence[str], prompts: Sequence[str], *, few: bool = False
    ) -> tuple[Condition, ...]:
        """The classes to draw, or the one condition of an unconditional model."""
        if prompts:
            raise SpecError(
                "the model draws classes, not prompts",
                Hint.of("use {}", label=ANY),
                option="prompt",
            )
        if self._class_denoiser.count:
            names = class_names(self.pipeline)
            return class_conditions(labels, self._class_denoiser.count, names, few=few)
        if labels:
            raise SpecError("the model is unconditional; leave it out", option="label")
        return (Condition(),)

    def draw(self, items: Sequence[Item], trace: Trace = no_trace) -> Tensor:
        """Uint8 images ``[n, H, W, C]`` on the CPU; C is 1 or 3."""
        device, class_denoiser = self.pipeline.device, self._class_denoiser
        labels = [item.condition.label for item in items]
        predict = class_predictor(
            class_denoiser.model,
            torch.tensor(labels, device=device) if class_denoiser.count else None,
            self._guidance,
            variance=keeps_variance(self._scheduler, class_denoiser.model),
            condition=class_denoiser.condition,
        )
        sources = generators([item.seed for item in items])
        noise = initial_noise(class_denoiser.shape, sources, device)
        latents = reverse_process(
            predict, noise, self._scheduler, self.settings.steps, sources, trace
        )
        return decode(latents, class_denoiser.vae)


class TextSampler(Sampler):
    """The sampler of text-to-image pipelines, which runs their own ``__call__``."""

    def __init__(self, pipeline: Any, requested: RequestedSettings) -> None:
        self._takes = inspect.signature(type(pipeline).__call__).parameters
        tokenizers = [name for name in ("tokenizer", "tokenizer_2") if hasattr(pipeline, name)]
        if tokenizers and not any(getattr(pipeline, name) for name in tokenizers):
            raise SourceError(
                f"this {type(pipeline).__name__} has no tokenizer; of an original .ckpt, put the "
                "folder tokenizer/ (of bert-base-uncased for LDM, of openai/clip-vit-large-patch14 "
                "for Stable Diffusion 1) beside it"
            )
        if requested.guidance is not None and "guidance_scale" not in self._takes:
            message = f"{type(pipeline).__name__} has no guidance; leave it out"
            raise SpecError(message, option="guidance")
        if requested.guided_channels:
            message = "is for class-conditional models; leave it out"
            raise SpecError(message, option="guided_channels")
        if requested.scheduler != "auto":
            scheduler = make_scheduler(
                pipeline.scheduler, requested.scheduler, learned_variance=False
            )
            pipeline.scheduler = scheduler
        settings = Settings(
            scheduler=scheduler_name(pipeline.scheduler),
            steps=requested.steps or int(self._default("num_inference_steps", _STEPS)),
            guidance=float(
                self._default("guidance_scale", 1.0)
                if requested.guidance is None
                else requested.guidance
            ),
        )
        super().__init__(pipeline, settings)

    def _default(self, name: str, otherwise: float) -> float:
        parameter = self._takes.get(name)
        if parameter is None or not isinstance(parameter.default, int | float):
            return otherwise
        return parameter.default

    def conditions(
        self, labels: Sequence[str], prompts: Sequence[str], *, few: bool = False
    ) -> tuple[Condition, ...]:
        """The prompts to draw."""
        if labels:
            raise SpecError(
                "the model draws prompts, not classes",
                Hint.of("use {}", prompt=ANY),
                option="label",
            )
        if not prompts:
            raise SpecError("nothing to draw", Hint.of("give {}", prompt=ANY))
        return tuple(Condition(name=prompt, prompt=prompt) for prompt in prompts)

    @torch.no_grad()
    def draw(self, items: Sequence[Item], trace: Trace = no_trace) -> Tensor:
        """Uint8 images ``[n, H, W, 3]`` on the CPU."""
        self.pipeline.set_progress_bar_config(disable=True)
        extra: dict[str, Any] = {}
        if "guidance_scale" in self._takes:
            extra["guidance_scale"] = self.settings.guidance
        if "callback_on_step_end" in self._takes:
            extra["callback_on_step_end"] = _callback(trace)
        images = self.pipeline(
            prompt=[item.condition.prompt for item in items],
            num_inference_steps=self.settings.steps,
            generator=generators([item.seed for item in items]),
            output_type="np",
            **extra,
        ).images  # float [n, H, W, 3] in [0, 1]
        pixels = torch.as_tensor(images).permute(0, 3, 1, 2)
        return to_uint8(pixels * 2 - 1)


def _callback(trace: Trace) -> Any:
    def at_step_end(pipeline: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        trace(step, values["latents"].float())
        return values

    return at_step_end


def pipeline_of(model: torch.nn.Module) -> Any:
    """The pipeline of a lone DiT on grey or coloured pixels, with the DiT paper's noise schedule.

    Raises:
        SourceError: the model needs other components to draw images.
    """
    kind = type(model).__name__
    config: Any = model.config
    if kind == "DiTTransformer2DModel" and config.in_channels in _PIXELS:
        from diffusers import DDIMScheduler

        from dpq_diffusion.class_pipelines import PixelDiTPipeline

        # 1000 steps, betas from 0.0001 to 0.02 on a straight line: also diffusers' defaults.
        return PixelDiTPipeline(model, DDIMScheduler())  # type: ignore[no-untyped-call]
    if kind not in _NEEDS:
        raise SourceError(f"{kind} alone draws no images; give the folder of its pipeline")
    pipeline, name, rest = _NEEDS[kind]
    if kind == "DiTTransformer2DModel":
        rest += " (of an original .pt, put the folder vae/ beside it)"
    raise SourceError(
        f"{kind} alone draws no images, it lacks {rest}; give "
        f"the folder of a whole pipeline, or {pipeline}.from_pretrained(PIPELINE, "
        f"{name}=MODEL).save_pretrained(FOLDER) once"
    )
