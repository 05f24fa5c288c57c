"""CompVis LDM checkpoints as whole models: the same images, their config, and refusals."""

from __future__ import annotations

import diffusion_models
import numpy as np
import pytest
import torch
from cli_runs import dpq
from compvis_checkpoints import BETAS, ROWS, YAML, by_class, by_text, save, unconditional
from compvis_ldm import LatentDiffusion
from PIL import Image
from torch import nn

from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_diffusion.pipelines.conditions import make_items
from dpq_diffusion.pipelines.denoising import generators, initial_noise, to_uint8
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.sampling.samplers import RequestedSettings, make_sampler
from dpq_diffusion.source.checkpoint import open_checkpoint
from dpq_diffusion.source.locate import locate

pytestmark = pytest.mark.slow  # whole runs of a job

CPU = Run(device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def draw(source: str, label: str | None, guidance: float | None = None) -> torch.Tensor:
    wish = RequestedSettings(steps=4, guidance=guidance)
    sampler = make_sampler(load_pipeline(source, CPU), wish)
    conditions = sampler.conditions((label,) if label else (), ())
    return sampler.draw(make_items(conditions, 2, 5)).int()


def images_of(model: LatentDiffusion, context: torch.Tensor | None = None) -> torch.Tensor:
    x = initial_noise((3, 8, 8), generators([5, 6]), torch.device("cpu"))
    with torch.no_grad():
        return to_uint8(model.first_stage_model.decode(model.ddim(x, 4, context))).int()


def test_an_unconditional_model_draws_the_same_images(tmp_path):
    model = unconditional()
    found, expected = draw(save(model, tmp_path), None), images_of(model)
    assert expected.float().std() > 5
    assert (found - expected).abs().max() <= 1


def test_a_class_conditional_model_draws_the_same_images(tmp_path):
    model = by_class()
    source = save(model, tmp_path, "{num_heads: 1}")
    table = model.cond_stage_model.embedding.weight
    expected = images_of(model, table[3].expand(2, 1, -1))
    found = draw(source, "3", guidance=1.0)
    assert (found - expected).abs().max() <= 1
    assert (found - images_of(model, table[4].expand(2, 1, -1))).abs().max() > 20


def test_guidance_is_away_from_the_last_class(tmp_path):
    model = by_class()
    source = save(model, tmp_path, "{num_heads: 1}")
    plain = model.model["diffusion_model"]
    table = model.cond_stage_model.embedding.weight.detach()

    class Guided(nn.Module):
        def forward(self, x, t, context):
            null = plain(x, t, table[ROWS - 1].expand(2, 1, -1))
            return null + 1.5 * (plain(x, t, context) - null)

    model.model["diffusion_model"] = Guided()
    expected = images_of(model, table[3].expand(2, 1, -1))
    assert (draw(source, "3") - expected).abs().max() <= 1
    with pytest.raises(SpecError, match="label=10: the model has the classes 0 to 9"):
        draw(source, "10")


def test_a_round_number_of_classes_has_no_null_class(tmp_path):
    source = save(by_class(rows=10), tmp_path, "{num_heads: 1}")
    assert draw(source, "9").shape == (2, 16, 16, 3)
    with pytest.raises(SpecError, match="the model has no null class to guide with"):
        draw(source, "9", guidance=2.0)


def test_averaged_weights_are_taken(tmp_path):
    model, averaged = unconditional(), {}
    for name, value in model.model.named_parameters():
        averaged["model_ema." + name.replace(".", "")] = value.data.clone()
        value.data.zero_()
    for name, value in averaged.items():
        model.register_buffer(name.replace(".", "_"), value)
    content = {
        name.replace("model_ema_", "model_ema."): v for name, v in model.state_dict().items()
    }
    torch.save(content, tmp_path / "model.ckpt")  # noqa: TID251
    (tmp_path / "config.yaml").write_text(YAML.format(heads="{num_head_channels: 32}"))
    found = draw(str(tmp_path / "model.ckpt"), None)
    assert (found - images_of(unconditional())).abs().max() <= 1


def test_the_pipeline_on_its_own(tmp_path):
    """Saved and loaded again, called by hand: the images of the sampler."""
    pipeline = load_pipeline(save(by_class(), tmp_path, "{num_heads: 1}"), CPU)
    pipeline.save_pretrained(tmp_path / "saved")
    again = load_pipeline(str(tmp_path / "saved"), CPU)
    assert again.config.null_class == ROWS - 1
    for one in (pipeline, again):
        made = one([3, 3], generator=generators([5, 6]), num_inference_steps=4, output_type="np")
        found = torch.from_numpy(made.images * 255).round().int()
        assert (found - draw(str(tmp_path / "model.ckpt"), "3")).abs().max() <= 1


@pytest.mark.slow
def test_compress_and_sample_through_the_command(tmp_path):
    source = save(by_class(), tmp_path, "{num_heads: 1}")
    out = tmp_path / "artifact"
    components = "unet,vqvae,class_embedder"
    done = dpq("compress", source, "--adapter", "diffusion", "--components", components, "-o", out)
    assert done.code == 0, done.err
    for folder in ("one", "two"):
        words = ["--label", "3", "--label", "7", "--sampling-steps", "3", "--columns", "2"]
        done = dpq("sample", out, *words, "--baseline", source, "-o", tmp_path / folder)
        assert done.code == 0, done.err
    files = [sorted((tmp_path / folder / "images").iterdir()) for folder in ("one", "two")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    assert np.asarray(Image.open(files[0][0])).shape == (16, 16, 3)
    done = dpq(
        "eval", out, "--count", "4", "--sampling-steps", "2", "--baseline-count", "4", "--json"
    )
    assert done.code == 0, done.err
    assert "latent MSE" in done.out


def test_text_to_image_needs_its_tokenizer(tmp_path):
    source = save(by_text(), tmp_path, "{num_heads: 8}")
    assert set(open_checkpoint(source, ("unet", "bert")).weights) == {"unet", "bert"}
    with pytest.raises(SourceError, match=r"has no tokenizer; of an original \.ckpt, put"):
        make_sampler(load_pipeline(source, CPU), RequestedSettings())
    diffusion_models.bert_tokenizer().save_pretrained(tmp_path / "tokenizer")
    sampler = make_sampler(load_pipeline(source, CPU), RequestedSettings(steps=2))
    images = sampler.draw(make_items(sampler.conditions((), ("a cat",)), 1, 0))
    assert images.shape == (1, 64, 64, 3)


def test_what_the_yaml_says_counts(tmp_path):
    source = save(by_class(), tmp_path)
    file = tmp_path / "model.yaml"
    text = file.read_text() + "    scale_factor: 0.5\n    parameterization: v\n    timesteps: 400\n"
    file.write_text(text.replace("0.0195", "1.2e-2") + "    beta_schedule: sqrt_linear\n")
    pipeline = load_pipeline(source, CPU)
    assert pipeline.vqvae.config.scaling_factor == 0.5
    expected = {"prediction_type": "v_prediction", "num_train_timesteps": 400}
    expected |= {"beta_start": 0.0015, "beta_end": 0.012, "beta_schedule": "linear"}
    assert expected.items() <= pipeline.scheduler.config.items()


@pytest.mark.parametrize("kind", ["root", "straight", "own"])
def test_without_a_yaml_the_stored_schedule_counts(kind, tmp_path):
    straight = torch.linspace(0.001, 0.01, 500)
    betas = {"root": BETAS, "straight": straight, "own": straight**1.5}[kind]
    model = unconditional()
    model.betas = betas
    model.register_buffer("scale_factor", torch.tensor(0.25))
    source = save(model, tmp_path)
    (tmp_path / "model.yaml").unlink()
    pipeline = load_pipeline(source, CPU)
    torch.testing.assert_close(pipeline.scheduler.betas, betas, rtol=1e-4, atol=0)
    assert pipeline.vqvae.config.scaling_factor == 0.25
    assert pipeline.unet.config.sample_size == 64


BAD_YAML = {
    "[1": "not readable YAML",
    "!!python/object/apply:os.system ['true']": "not readable YAML",
    "a: 1": "no model.params, so not the config of an LDM",
    "model: {params: {image_size: big}}": "image_size is not a number",
    "model: {params: {image_size: 2.5}}": "image_size is not a positive whole number",
    "model: {params: {linear_start: 0.1, linear_end: 0.01}}": "are not 0 < a <= b < 1",
    "model: {params: {parameterization: flow}}": "parameterization is 'flow', not one of eps, x0",
    "model: {params: {unet_config: {params: {num_heads: 0}}}}": "num_heads is not a positive",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_a_bad_yaml_is_one_line(text, tmp_path):
    source = save(unconditional(), tmp_path)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(SourceError, match=BAD_YAML[text]) as caught:
        locate(source)
    assert "\n" not in str(caught.value)


def test_what_diffusers_cannot_express_is_refused(tmp_path):
    source = save(unconditional(heads=8, attended=(0, 1)), tmp_path, "{num_heads: 8}")
    with pytest.raises(SourceError, match="8 heads at several widths"):
        locate(source)
    weights = unconditional().state_dict()
    del weights["first_stage_model.decoder.mid.block_1.conv1.weight"]
    weights["first_stage_model.decoder.mid.extra.weight"] = torch.ones(1)
    torch.save(weights, tmp_path / "model.ckpt")  # noqa: TID251
    with pytest.raises(SourceError, match=r"'decoder\.mid\.extra\.weight' of the first"):
        locate(source)


@pytest.mark.parametrize("kind", ["no first stage", "other conditioner", "more input"])
def test_a_unet_whose_pipeline_is_unknown_can_be_compressed_only(kind, tmp_path):
    model = unconditional()
    if kind == "no first stage":
        del model.first_stage_model
    elif kind == "other conditioner":
        model.cond_stage_model = nn.Conv2d(8, 8, 1)
    else:
        model.model["diffusion_model"].input_blocks[0][0] = nn.Conv2d(6, 32, 3)
    source = save(model, tmp_path)
    assert set(open_checkpoint(source).weights) == {""}
    with pytest.raises(SourceError, match="UNet2DModel alone draws no images, it lacks vqvae"):
        make_sampler(load_pipeline(source, CPU), RequestedSettings())
