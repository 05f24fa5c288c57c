"""Components on invented inputs: probes for `dpq inspect --verify`, and the time of a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.artifact import Artifact
from dpq_core.device import resolve
from dpq_core.errors import AdapterError
from dpq_core.plugin.results import Metric
from dpq_core.plugin.speed import per_second
from dpq_core.run import Run
from dpq_core.runtime.swap import PQModule
from dpq_diffusion.pipelines.class_models import denoiser
from dpq_diffusion.pipelines.loading import is_loadable, load_folder, load_pipeline
from dpq_hf.sources import PIPELINE_INDEX, is_pipeline, read_json

TOKENS = 4
"""Number of tokens in an invented prompt."""

_SAMPLED = 4  # weights that stand for a component

Normal = Callable[..., Tensor]
"""A function from a shape to standard normal numbers, the same in every run."""


@torch.no_grad()
def probe(artifact: Artifact, run: Run) -> dict[str, Tensor]:
    """Load an artifact and run every component that holds quantized weights.

    Of a component whose inputs are not known here, some decoded weights are taken instead; and so
    for a pipeline or model whose class is none of diffusers', which only its own code can load.
    """
    folder = artifact.path
    if not is_loadable(folder):
        names = [entry.name for entry in artifact.manifest.tensors if entry.spec is not None]
        return {"weights": _some([artifact.read(name) for name in names[:_SAMPLED]])}
    device = resolve(run.device)
    loaded = load_folder(folder, device)
    outputs: dict[str, Tensor] = {}
    for name, model in _components(loaded, folder):
        weights = [m.weight for m in model.modules() if isinstance(m, PQModule)]
        if not weights:
            continue
        kind = type(model).__name__
        if kind in _FORWARD:
            dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
            outputs[name] = _FORWARD[kind](model, _normal(device, dtype)).float()
        else:
            outputs[name] = _some([weight.decode() for weight in weights[:_SAMPLED]])
    return outputs


@torch.no_grad()
def speed(source: str, run: Run) -> Metric:
    """Denoising steps per second: the denoiser alone, for one picture without guidance.

    Raises:
        AdapterError: the inputs of the model's class are not known here.
    """
    model = denoiser(load_pipeline(source, run))
    kind = type(model).__name__
    if kind not in _FORWARD:
        known = ", ".join(_FORWARD)
        raise AdapterError(f"the denoiser {kind} cannot be timed; there are: {known}")
    weight = next(p for p in model.parameters() if p.is_floating_point())
    normal = _normal(weight.device, weight.dtype)

    def step() -> int:
        return len(_FORWARD[kind](model, normal))

    what = f"call of {kind} for one picture, {str(weight.dtype).removeprefix('torch.')}"
    return per_second("steps/s", step, what, run)


def _some(weights: list[Tensor]) -> Tensor:
    """The first values of each weight."""
    return torch.cat([weight.float().flatten()[:256] for weight in weights] or [torch.zeros(1)])


def _normal(device: torch.device, dtype: torch.dtype) -> Normal:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return draw


def _components(loaded: Any, folder: Path) -> list[tuple[str, nn.Module]]:
    if not is_pipeline(folder):
        return [("model", loaded)]
    named = (name for name, v in read_json(folder / PIPELINE_INDEX).items() if isinstance(v, list))
    components = ((name, getattr(loaded, name, None)) for name in named)
    return [(name, model) for name, model in components if isinstance(model, nn.Module)]


def _timestep(normal: Normal) -> Tensor:
    return torch.full((1,), 500, device=normal(1).device)


def _label(normal: Normal) -> Tensor:
    return torch.ones(1, dtype=torch.int64, device=normal(1).device)


def _latents(model: Any, normal: Normal) -> Tensor:
    size = model.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return normal(1, model.config.in_channels, height, width)


def _dit(model: Any, normal: Normal) -> Tensor:
    x = _latents(model, normal)
    out: Tensor = model(x, timestep=_timestep(normal), class_labels=_label(normal)).sample
    return out


def _unet(model: Any, normal: Normal) -> Tensor:
    labels = _label(normal) if model.config.num_class_embeds else None
    out: Tensor = model(_latents(model, normal), _timestep(normal), class_labels=labels).sample
    return out


def _unet_condition(model: Any, normal: Normal) -> Tensor:
    config = model.config
    more: dict[str, Any] = {}
    if config.num_class_embeds:
        more["class_labels"] = _label(normal)
    if config.addition_embed_type == "text_time":
        ids = torch.ones(1, 6, device=normal(1).device)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        more["added_cond_kwargs"] = {"text_embeds": normal(1, pooled), "time_ids": ids}
    width = config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    prompt = normal(1, TOKENS, config.encoder_hid_dim or width)
    x = _latents(model, normal)
    out: Tensor = model(x, _timestep(normal), encoder_hidden_states=prompt, **more).sample
    return out


def _pixart(model: Any, normal: Normal) -> Tensor:
    conditions: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        conditions = {"resolution": normal(1, 2), "aspect_ratio": normal(1, 1)}
    out: Tensor = model(
        _latents(model, normal),
        encoder_hidden_states=normal(1, TOKENS, model.config.caption_channels),
        timestep=_timestep(normal),
        added_cond_kwargs=conditions,
    ).sample
    return out


def _flux(model: Any, normal: Normal) -> Tensor:
    config, side = model.config, 4
    place = torch.zeros(side * side, 3, device=normal(1).device)
    place[:, 1], place[:, 2] = (
        torch.arange(side).repeat_interleave(side),
        torch.arange(side).repeat(side),
    )
    out: Tensor = model(
        hidden_states=normal(1, side * side, config.in_channels),
        encoder_hidden_states=normal(1, TOKENS, config.joint_attention_dim),
        pooled_projections=normal(1, config.pooled_projection_dim),
        timestep=torch.full((1,), 0.5, device=place.device),
        img_ids=place,
        txt_ids=torch.zeros(TOKENS, 3, device=place.device),
        guidance=torch.ones(1, device=place.device) if config.guidance_embeds else None,
    ).sample
    return out


def _autoencoder(model: Any, normal: Normal) -> Tensor:
    out: Tensor = model.decode(normal(1, model.config.latent_channels, 4, 4)).sample
    return out


def _text(model: Any, normal: Normal) -> Tensor:
    tokens = torch.arange(1, 1 + TOKENS, device=normal(1).device)[None]
    out: Tensor = model(input_ids=tokens)[0]
    return out


_FORWARD: dict[str, Callable[[Any, Normal], Tensor]] = {
    "DiTTransformer2DModel": _dit,
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet_condition,
    "PixArtTransformer2DModel": _pixart,
    "FluxTransformer2DModel": _flux,
    "AutoencoderKL": _autoencoder,
    "VQModel": _autoencoder,
    "CLIPTextModel": _text,
    "CLIPTextModelWithProjection": _text,
    "T5EncoderModel": _text,
}
