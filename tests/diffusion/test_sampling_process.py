"""The reverse process: guidance, learned variance, schedulers, the pixel pipeline."""

from __future__ import annotations

import diffusion_models
import diffusion_pipelines
import pytest
import torch

from dpq_core.errors import SourceError, SpecError
from dpq_diffusion.pipelines.conditions import make_items
from dpq_diffusion.pipelines.denoising import Guidance, to_uint8
from dpq_diffusion.pipelines.schedulers import make_scheduler, scheduler_name
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # diffusers
)


def drawn(pipeline, count: int = 3, **wish) -> torch.Tensor:
    sampler = make_sampler(pipeline, RequestedSettings(**{"steps": 4} | wish))
    return sampler.draw(make_items(sampler.conditions((), ()), count, 0)).int()


def labels_seen(pipeline, **wish) -> list[list[int]]:
    """The class labels of every call of the model."""
    seen: list[list[int]] = []

    def look(model, args, kwargs):
        seen.append(kwargs["class_labels"].tolist())

    (getattr(pipeline, "transformer", None) or pipeline.unet).register_forward_pre_hook(
        look, with_kwargs=True
    )
    drawn(pipeline, **wish)
    return seen


@pytest.mark.parametrize("classes", [3, 7])
def test_the_null_class_follows_the_classes(classes):
    pipeline = diffusion_pipelines.pixel_dit(classes=tuple("abcdefg"[:classes]))
    assert labels_seen(pipeline, guidance=2.0) == [[0, 1, 2, classes, classes, classes]] * 4


def test_without_guidance_the_model_runs_once():
    assert labels_seen(diffusion_pipelines.pixel_dit(), guidance=1.0) == [[0, 1, 2]] * 4


def test_guidance_zero_forgets_the_class():
    pipeline = diffusion_pipelines.pixel_dit()
    table = pipeline.transformer.transformer_blocks
    free = drawn(pipeline, guidance=0.0)
    for block in table:  # every class becomes the null class
        rows = block.norm1.emb.class_embedder.embedding_table.weight.data
        rows[:] = rows[3].clone()
    assert (free - drawn(pipeline, guidance=1.0)).abs().max() <= 1


@pytest.mark.slow
def test_a_unet_with_a_spare_class_is_guided_by_it():
    from diffusers import DDIMPipeline, DDIMScheduler

    model = diffusion_models.unet(in_channels=1, out_channels=1, num_class_embeds=4)
    pipeline = DDIMPipeline(model, DDIMScheduler())
    pipeline.register_to_config(id2label={"0": "a", "1": "b", "2": "c"})
    assert labels_seen(pipeline) == [[0, 1, 2, 3, 3, 3]] * 4


def test_a_unet_without_null_class_cannot_be_guided():
    from diffusers import DDIMPipeline, DDIMScheduler

    model = diffusion_models.unet(in_channels=1, out_channels=1, num_class_embeds=3)
    pipeline = DDIMPipeline(model, DDIMScheduler())
    assert labels_seen(pipeline) == [[0, 1, 2]] * 4
    with pytest.raises(SpecError, match="the model has no null class to guide with; use 1"):
        make_sampler(pipeline, RequestedSettings(guidance=1.5))


@pytest.mark.parametrize("guided", [0, 2, 3])
def test_guidance_of_some_channels(guided):
    output = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    combined = Guidance(scale=1.5, channels=guided, null=9).combine(output, 3)
    first = guided or 3
    with_class, without = output[:2], output[2:]
    expected = without + 1.5 * (with_class - without)
    assert torch.equal(combined[:, :first], expected[:, :first])
    assert torch.equal(combined[:, first:], with_class[:, first:])


@pytest.mark.parametrize(("scheduler", "uses"), [("ddpm", True), ("ddim", False)])
def test_only_ddpm_uses_the_learned_variance(scheduler, uses):
    pipeline = diffusion_pipelines.pixel_dit()
    before = drawn(pipeline, scheduler=scheduler)
    head = pipeline.transformer.proj_out_2
    head.bias.data[1::2] += 3.0  # rows of a patch's pixels: noise, variance, noise, ...
    assert torch.equal(drawn(pipeline, scheduler=scheduler), before) != uses


def test_the_steps_of_ddpm_are_those_of_the_official_code():
    pipeline = diffusion_pipelines.pixel_dit()
    scheduler = make_scheduler(pipeline.scheduler, "ddpm", learned_variance=True)
    scheduler.set_timesteps(250)
    stride = 999 / 249  # space_timesteps(1000, "250") of the ADM and DiT code
    assert scheduler.timesteps.tolist() == [round(i * stride) for i in range(250)][::-1]
    assert scheduler.config.variance_type == "learned_range"


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_a_scheduler_keeps_the_noise_schedule(name):
    from diffusers import DDIMScheduler

    current = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    found = make_scheduler(current, name, learned_variance=False)
    assert scheduler_name(found) == name
    assert torch.equal(found.alphas_cumprod, current.alphas_cumprod)


def test_a_flow_cannot_be_run_by_ddim():
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(SpecError, match="FlowMatchEulerDiscreteScheduler, runs another kind"):
        make_scheduler(flow, "ddim", learned_variance=False)
    assert (
        scheduler_name(make_scheduler(flow, "auto", learned_variance=False))
        == "FlowMatchEulerDiscrete"
    )


def test_a_lone_component_draws_nothing():
    with pytest.raises(SourceError, match="alone draws no images, it lacks vqvae and"):
        make_sampler(diffusion_models.unet(), RequestedSettings())


def test_pixels_are_rounded():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 1.5, -1 + 1.4 / 127.5]).view(1, 1, 1, 6)
    assert to_uint8(pixels).flatten().tolist() == [0, 0, 128, 255, 255, 1]
    with pytest.raises(SourceError, match="NaN or infinity"):
        to_uint8(pixels * float("nan"))


def test_the_pixel_pipeline_draws_what_the_sampler_draws():
    pipeline = diffusion_pipelines.pixel_dit()
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    images = pipeline([0, 1, 2], generator=generators, num_inference_steps=4, output_type="pt")
    assert torch.equal((images.images * 255).round().int().permute(0, 2, 3, 1), drawn(pipeline))
    picture = pipeline(pipeline.get_label_ids("square"), num_inference_steps=1).images[0]
    assert picture.size == (8, 8)


def test_the_pixel_pipeline_is_saved_with_its_class_names(tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = diffusion_pipelines.pixel_dit()
    pipeline.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(again) is type(pipeline)
    assert again.get_label_ids(["cross"]) == [2]
    assert torch.equal(drawn(again), drawn(pipeline))
