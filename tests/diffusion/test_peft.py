"""LoRA on a compressed diffusion model, as on the dense one that it stands for."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict

from dpq_core.run import Run
from dpq_core.runtime import PQWeight
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.pipelines.probe import _FORWARD, _normal

TARGETS = ["to_q", "to_v", "ff.net.0.proj", "proj_out"]
PROMPT = {
    "prompt": "a red cube",
    "num_inference_steps": 2,
    "output_type": "np",
    "height": 32,
    "width": 32,
}


def load(folder):
    return load_pipeline(str(folder), Run(device="cpu"))


def output(model):
    model.eval()
    return _FORWARD[type(model).__name__](model, _normal(torch.device("cpu"), torch.float32))


def dense_twin(folder):
    """The model with decoded weights."""
    return load(folder).dequantize()


def adapted(model, targets=TARGETS):
    torch.manual_seed(0)
    names = [name for name, _ in model.named_modules()]
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=[end for end in targets if any(name.endswith(end) for name in names)],
        init_lora_weights=False,
    )
    if hasattr(model, "add_adapter"):
        model.add_adapter(config, adapter_name="style")
    else:
        inject_adapter_in_model(config, model, adapter_name="style")
    return model


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("dit", TARGETS),
        ("unet_condition", TARGETS),
        ("flux", TARGETS),
        ("unet", ["conv1", "conv2"]),
        ("vae", ["conv1", "to_k"]),
    ],
)
def test_an_adapter_trains_around_the_frozen_model(kind, targets, folder_of, make_artifact):
    artifact = make_artifact(folder_of(kind))
    results = []
    for model in (load(artifact), dense_twin(artifact)):
        out = output(adapted(model, targets))
        out.square().mean().backward()
        results.append((out, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-4)
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        assert "lora_" in name
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_a_pipeline_loads_scales_fuses_and_unloads_adapters(pipeline_of, make_artifact, tmp_path):
    artifact = make_artifact(pipeline_of("text_to_image"))

    def image(pipeline, **options):
        generator = torch.Generator().manual_seed(0)
        return torch.from_numpy(pipeline(**PROMPT, generator=generator, **options).images)

    pipeline = load(artifact)
    plain = image(pipeline)
    adapted(pipeline.unet)
    styled = image(pipeline)
    assert (styled - plain).abs().max() > 1e-3
    layers = get_peft_model_state_dict(pipeline.unet, adapter_name="style")
    type(pipeline).save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)

    other = load(artifact)
    other.load_lora_weights(tmp_path / "lora", adapter_name="style")
    torch.testing.assert_close(image(other), styled, rtol=1e-3, atol=1e-3)
    other.set_adapters("style", 0.0)
    torch.testing.assert_close(image(other), plain, rtol=1e-3, atol=1e-3)
    other.set_adapters("style", 0.5)
    half = image(other)
    assert (half - plain).abs().max() > 1e-4
    other.set_adapters("style", 1.0)
    other.fuse_lora(adapter_names=["style"])
    torch.testing.assert_close(image(other), styled, rtol=1e-3, atol=1e-3)
    other.unfuse_lora()
    torch.testing.assert_close(image(other), styled, rtol=1e-3, atol=1e-3)
    other.fuse_lora(adapter_names=["style"])
    other.unload_lora_weights()
    torch.testing.assert_close(image(other), styled, rtol=1e-3, atol=1e-3)
    other.unet.save_pretrained(tmp_path / "fused")
    again = type(other.unet).from_pretrained(tmp_path / "fused")
    assert any(isinstance(module, PQWeight) for module in again.modules())
    other.unet = again
    torch.testing.assert_close(image(other), styled, rtol=1e-3, atol=1e-3)

    third = load(artifact)
    third.load_lora_weights(tmp_path / "lora")
    third.unload_lora_weights()
    assert torch.equal(image(third), plain)


@pytest.mark.parametrize("kind", ["unet_condition", "flux"])
def test_projections_are_fused_by_decoding_them(kind, folder_of, make_artifact):
    model = load(make_artifact(folder_of(kind)))
    with torch.no_grad():
        expected = output(model)
        model.fuse_qkv_projections()
        torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-4)
        model.unfuse_qkv_projections()
        assert torch.equal(output(model), expected)


def test_parameters_are_counted_as_in_the_uncompressed_model(folder_of, make_artifact):
    folder = folder_of("dit")
    assert (
        load(make_artifact(folder)).num_parameters()
        == dense_twin(make_artifact(folder)).num_parameters()
    )


def test_casts_are_refused_with_what_to_do(folder_of, make_artifact):
    model = load(make_artifact(folder_of("flux")))
    with pytest.raises(ValueError, match="use the `torch_dtype` argument"):
        model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="not supported for quantized model"):
        model.half()
