"""Artifacts load in diffusers, and give what the decoded weights give."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from diffusion_pipelines import pixel_dit
from safetensors import safe_open

from dpq_core.artifact import Artifact
from dpq_core.errors import AdapterError, ArtifactError, SpecError
from dpq_core.run import Run
from dpq_core.runtime import PQConv2d, PQEmbedding, PQLinear, PQWeight
from dpq_core.runtime.swap import PQModule
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.pipelines import probe
from dpq_diffusion.pipelines.loading import load_pipeline
from dpq_diffusion.pipelines.probe import _FORWARD, _normal

CPU = Run(device="cpu")
KINDS = ("dit", "unet", "unet_condition", "pixart", "flux", "vae")


def output(model) -> torch.Tensor:
    with torch.no_grad():
        return _FORWARD[type(model).__name__](model, _normal(torch.device("cpu"), torch.float32))


def dense(folder, artifact, component: str = ""):
    """The uncompressed model with the artifact's decoded weights."""
    model = load_pipeline(str(folder), CPU)
    model = getattr(model, component) if component else model
    opened, prefix = Artifact.open(artifact), f"{component}/" if component else ""
    values = {
        name.removeprefix(prefix): opened.read(name)
        for name in opened.names()
        if name.startswith(prefix)
    }
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected
    for name in missing:  # copies of block 0
        value = values[name.replace(name.split(".norm1")[0], "transformer_blocks.0")]
        model.get_parameter(name).data.copy_(value)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_component_gives_what_its_decoded_weights_give(kind, folder_of, make_artifact):
    folder = folder_of(kind)
    artifact = make_artifact(folder)
    model = load_pipeline(str(artifact), CPU)
    kinds = {type(m) for m in model.modules() if isinstance(m, PQModule)}
    assert kinds >= ({PQLinear} if kind != "vae" else {PQConv2d})
    assert model.dtype == torch.float32
    expected = output(dense(folder, artifact))
    assert expected.std() > 0.01
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(output(load_pipeline(str(folder), CPU)), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_saved_again_and_loaded_it_is_the_same(kind, folder_of, make_artifact, tmp_path):
    model = load_pipeline(str(make_artifact(folder_of(kind))), CPU)
    model.save_pretrained(tmp_path / "again")
    again = load_pipeline(str(tmp_path / "again"), CPU)
    assert torch.equal(output(again), output(model))
    assert set(again.state_dict()) == set(model.state_dict())


def test_all_kinds_of_modules_are_there(folder_of, make_artifact):
    model = load_pipeline(str(make_artifact(folder_of("unet"))), CPU)
    kinds = {type(m) for m in model.modules() if isinstance(m, PQModule)}
    assert kinds == {PQLinear, PQConv2d, PQEmbedding}


def test_copies_are_stored_once_and_shared_again(folder_of, make_artifact, tmp_path):
    folder = folder_of("dit")
    artifact = make_artifact(folder)
    names = Artifact.open(artifact).names()
    assert sum(".norm1.emb." in name for name in names) == 5
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as handle:
        assert sum(".norm1.emb." in name for name in handle.keys()) == 15  # noqa: SIM118
    model = load_pipeline(str(artifact), CPU)
    blocks = model.transformer_blocks
    assert blocks[0].norm1.emb is blocks[1].norm1.emb is blocks[2].norm1.emb
    model.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again" / "diffusion_pytorch_model.safetensors", "pt") as handle:
        assert not any(".1.norm1.emb." in name for name in handle.keys())  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codebooks_stay_float16_whatever_dtype_is_asked_for(dtype, folder_of, make_artifact):
    from diffusers import DiTTransformer2DModel

    artifact = make_artifact(folder_of("dit"))
    model = DiTTransformer2DModel.from_pretrained(artifact, dtype=dtype)
    exact = DiTTransformer2DModel.from_pretrained(artifact)
    for (_, one), (_, other) in zip(model.named_modules(), exact.named_modules(), strict=True):
        if isinstance(one, PQWeight):
            assert one.codebooks.dtype == one.row_scale.dtype == torch.float16
            assert torch.equal(one.codebooks, other.codebooks)
    assert model.dtype == model.proj_out_2.bias.dtype == dtype


@pytest.mark.slow
def test_a_pipeline_draws_the_same_images_before_and_after_saving(
    dit_folder, make_artifact, tmp_path
):
    pipeline = load_pipeline(str(make_artifact(dit_folder)), CPU)
    assert pipeline.config["id2label"]["3"] == "class 3"
    pipeline.save_pretrained(tmp_path / "again")
    again = load_pipeline(str(tmp_path / "again"), CPU)
    images = []
    for one in (pipeline, again):
        one.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(
            one([1, 2], guidance_scale=1, generator=generator, num_inference_steps=2).images
        )
    assert [i.tobytes() for i in images[0]] == [i.tobytes() for i in images[1]]


@pytest.mark.slow
def test_every_component_of_a_pipeline(text_folder, make_artifact, tmp_path):
    artifact = make_artifact(text_folder, components="unet,vae,text_encoder")
    pipeline = load_pipeline(str(artifact), CPU)
    again = tmp_path / "again"
    pipeline.save_pretrained(again)
    saved = load_pipeline(str(again), CPU)
    for component in ("unet", "vae", "text_encoder"):
        model = getattr(pipeline, component)
        assert any(isinstance(m, PQModule) for m in model.modules()), component
        assert model.dtype == torch.float32
        expected = output(dense(text_folder, artifact, component))
        torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(output(getattr(saved, component)), output(model))


@pytest.mark.slow
def test_only_the_denoiser_is_compressed_by_default(text_folder, make_artifact):
    artifact = make_artifact(text_folder)
    assert {name.partition("/")[0] for name in Artifact.open(artifact).names()} == {"unet"}
    for copied in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (artifact / copied).read_bytes() == (text_folder / copied).read_bytes()
    load_pipeline(str(artifact), CPU)


@pytest.mark.slow
def test_the_probe_is_stored_and_checked(text_folder, make_artifact):
    from dpq_core.jobs.probe import check_probe

    artifact = make_artifact(text_folder, components="unet,vae,text_encoder", probe=True)
    with safe_open(artifact / "probe.safetensors", "pt") as handle:
        assert set(handle.keys()) == {"unet", "vae", "text_encoder"}
    assert check_probe(DiffusionAdapter(), Artifact.open(artifact), CPU).ok
    assert Artifact.open(artifact).problems() == []


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_weights_may_be_offloaded_between_calls(kind, folder_of, make_artifact):
    from accelerate import cpu_offload

    model = load_pipeline(str(make_artifact(folder_of(kind))), CPU)
    expected = output(model)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    with torch.no_grad():
        found = _FORWARD[type(model).__name__](model, _normal(torch.device("cpu"), torch.float32))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("device_map", [{"": "cpu"}, {"": torch.device("cpu")}])
def test_a_device_map_is_accepted(device_map, folder_of, make_artifact):
    from diffusers import DiTTransformer2DModel

    artifact = make_artifact(folder_of("dit"))
    model = DiTTransformer2DModel.from_pretrained(artifact, device_map=device_map)
    assert torch.equal(output(model), output(load_pipeline(str(artifact), CPU)))


def test_weights_that_stay_on_the_disk_are_refused(folder_of, make_artifact, tmp_path):
    from diffusers import DiTTransformer2DModel

    artifact = make_artifact(folder_of("dit"))
    with pytest.raises(SpecError, match="cannot be offloaded to the disk") as caught:
        DiTTransformer2DModel.from_pretrained(
            artifact, device_map={"": "disk"}, offload_folder=tmp_path
        )
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Casting directly:UserWarning")
@pytest.mark.parametrize("components", ["transformer", "transformer,vae"])
def test_a_pipeline_is_offloaded_and_dispatched(components, dit_folder, make_artifact):
    from diffusers import DiffusionPipeline

    artifact = make_artifact(dit_folder, components=components)

    def images(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        draw = {"guidance_scale": 1, "num_inference_steps": 2, "output_type": "np"}
        return pipeline([1, 2], generator=generator, **draw).images

    expected = images(DiffusionPipeline.from_pretrained(artifact))
    offloaded = DiffusionPipeline.from_pretrained(artifact)
    offloaded.enable_model_cpu_offload(device="cpu")
    dispatched = DiffusionPipeline.from_pretrained(artifact, device_map="balanced")
    for pipeline in (offloaded, dispatched):
        assert (images(pipeline) == expected).all()


@pytest.mark.slow
def test_quantizing_while_loading_gives_what_compress_gives(dit_folder, tmp_path):
    from diffusers import DiffusionPipeline, PipelineQuantizationConfig

    from dpq_core.jobs.compress import compress
    from dpq_core.spec import QuantSpec
    from dpq_diffusion.hub.quantizer import DPQConfig

    wish = PipelineQuantizationConfig(quant_mapping={"transformer": DPQConfig(bits=2)})
    pipeline = DiffusionPipeline.from_pretrained(dit_folder, quantization_config=wish)
    bare = str(dit_folder / "transformer")
    compress(DiffusionAdapter(), bare, tmp_path / "out", QuantSpec.preset(2))
    expected = output(load_pipeline(str(tmp_path / "out"), CPU))
    assert torch.equal(output(pipeline.transformer), expected)
    pipeline.save_pretrained(tmp_path / "saved")
    again = load_pipeline(str(tmp_path / "saved"), CPU)
    assert torch.equal(output(again.transformer), expected)


def test_a_dense_model_needs_a_width(dit_folder):
    from diffusers import DiTTransformer2DModel

    from dpq_diffusion.hub.quantizer import DPQConfig

    with pytest.raises(SpecError, match="this model is not quantized"):
        DiTTransformer2DModel.from_pretrained(
            dit_folder / "transformer", quantization_config=DPQConfig()
        )


def test_dequantize_gives_an_ordinary_model(folder_of, make_artifact, tmp_path):
    model = load_pipeline(str(make_artifact(folder_of("unet"))), CPU)
    expected = output(model)
    model.dequantize()
    assert not any(isinstance(m, PQModule) for m in model.modules())
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-4)


def test_a_missing_tensor_is_an_error(folder_of, make_artifact, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    load_pipeline(str(make_artifact(folder_of("dit"))), CPU).save_pretrained(broken)
    file = broken / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    removed = tensors.pop("proj_out_2.bias")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"'proj_out_2\.bias' is missing"):
        load_pipeline(str(broken), CPU)
    tensors["proj_out_2.bias"] = removed
    name = "transformer_blocks.0.attn1.to_q.weight.codebooks"
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ArtifactError, match="finite"):
        load_pipeline(str(broken), CPU)


def test_a_damaged_artifact_is_refused(folder_of, make_artifact, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(make_artifact(folder_of("dit")), copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json: is 2 bytes"):
        load_pipeline(str(copy), CPU)


@pytest.mark.slow
def test_a_new_process_needs_the_import_only(dit_folder, make_artifact):
    artifact = str(make_artifact(dit_folder))
    code = (
        "from diffusers import DiffusionPipeline\n"
        "try:\n"
        f"    DiffusionPipeline.from_pretrained({artifact!r})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "import dpq_diffusion\n"
        f"p = DiffusionPipeline.from_pretrained({artifact!r})\n"
        "print(p.transformer.is_quantized)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, loaded = done.stdout.splitlines()
    assert "Unknown quantization type, got dpq" in refused
    assert loaded == "True"


def test_the_speed_is_of_one_step_of_the_denoiser(tmp_path, monkeypatch):
    pixel_dit().save_pretrained(tmp_path / "dit")
    metric = DiffusionAdapter().speed(str(tmp_path / "dit"), CPU)
    assert (metric.name, metric.higher_is_better) == ("steps/s", True)
    assert metric.value > 0
    assert metric.protocol.startswith("1 call of DiTTransformer2DModel for one picture, float32")
    monkeypatch.setattr(probe, "_FORWARD", {})
    with pytest.raises(AdapterError, match="cannot be timed"):
        DiffusionAdapter().speed(str(tmp_path / "dit"), CPU)
