"""Opening pipelines: what is compressed, what is copied, and what is refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusion_models import dit
from safetensors.torch import load_file, save_file

from dpq_core.artifact import Artifact
from dpq_core.errors import SourceError, SpecError
from dpq_core.jobs.compress import CompressOptions as EngineOptions
from dpq_core.jobs.compress import compress
from dpq_core.planning.plan import make_plan
from dpq_core.spec import KMeansSpec, Override, QuantSpec
from dpq_core.tensor.partition import Layout
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.options import CompressOptions
from dpq_diffusion.source.architecture import layout_of, policy
from dpq_diffusion.source.checkpoint import open_checkpoint

SPEC = QuantSpec.preset(2, kmeans=KMeansSpec(iterations=1, tail=0))


@pytest.fixture
def copied(dit_folder, tmp_path):
    """The DiT pipeline, to be damaged."""
    return shutil.copytree(dit_folder, tmp_path / "model")


def refused(source, match, *names):
    with pytest.raises(SourceError, match=match) as caught:
        open_checkpoint(str(source), names)
    assert "\n" not in str(caught.value)


def test_the_denoiser_is_opened_and_the_rest_copied(dit_folder):
    checkpoint = open_checkpoint(str(dit_folder))
    assert {name.partition("/")[0] for name in checkpoint.tensors} == {"transformer"}
    assert checkpoint.weights == {"transformer": "transformer/diffusion_pytorch_model"}
    assert set(checkpoint.side_files) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_chosen_components_keep_the_order_of_the_pipeline(text_folder):
    checkpoint = open_checkpoint(str(text_folder), ("vae", "text_encoder"))
    assert list(checkpoint.weights) == ["text_encoder", "vae"]
    assert checkpoint.weights["text_encoder"] == "text_encoder/model"
    assert "unet/diffusion_pytorch_model.safetensors" in checkpoint.side_files
    assert "tokenizer/tokenizer_config.json" in checkpoint.side_files


def test_half_precision_variants_become_plain_files(copied):
    for component in ("transformer", "vae"):
        file = copied / component / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    checkpoint = open_checkpoint(str(copied))
    assert checkpoint.weights == {"transformer": "transformer/diffusion_pytorch_model"}
    assert "vae/diffusion_pytorch_model.safetensors" in checkpoint.side_files


def test_shards_are_read_and_a_missing_one_refused(tmp_path):
    folder = tmp_path / "sharded"
    dit().save_pretrained(folder, max_shard_size="300KB")
    whole = open_checkpoint(str(folder))
    assert len(whole.components[""].files) > 1
    assert len(whole.tensors) == len(dit().state_dict()) - 2 * 5
    whole.components[""].files[0].unlink()
    refused(folder, "is missing; download the model again")


def test_copies_that_differ_are_all_kept(tmp_path):
    model = dit()
    table = model.transformer_blocks[1].norm1.emb.class_embedder.embedding_table
    table.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "dit")
    checkpoint = open_checkpoint(str(tmp_path / "dit"))
    assert checkpoint.shared[""] == {
        "transformer_blocks.2.norm1.emb": "transformer_blocks.0.norm1.emb"
    }
    assert sum(".norm1.emb." in name for name in checkpoint.tensors) == 10


def test_fixed_positions_are_not_stored(tmp_path):
    """Older diffusers saved the sin-cos table."""
    folder = tmp_path / "dit"
    dit().save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "pos_embed.pos_embed": torch.ones(1, 16, 64)}, file)
    assert "pos_embed.pos_embed" not in open_checkpoint(str(folder)).tensors


def test_wrong_components(dit_folder, folder_of):
    refused(dit_folder, r"no component 'unet' with weights; there are transformer, vae", "unet")
    refused(
        folder_of("dit"), "a single component, not a pipeline; leave out components", "transformer"
    )
    weights = folder_of("dit") / "diffusion_pytorch_model.safetensors"
    refused(weights, r"weights without a config; give their folder with config\.json")
    with pytest.raises(SpecError, match="an empty name"):
        CompressOptions(components="unet,,vae")


def test_damaged_pipelines(copied, tmp_path):
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:100])
    refused(copied, "not a readable safetensors file")
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    refused(copied, "only pickled weights")
    shutil.rmtree(copied / "transformer")
    refused(copied, "component 'transformer' of model_index.json is missing")
    (copied / "model_index.json").write_text("[")
    refused(copied, "not readable JSON")
    refused(tmp_path, "neither model_index.json nor config.json")
    refused("builtin:tiny-dot", "did you mean builtin:tiny-dit")
    refused(tmp_path / "gone", "no such file or folder")


def test_what_is_compressed_already_is_refused(dit_folder, make_artifact):
    refused(make_artifact(dit_folder), r"already quantized \(quant_method 'dpq'\)")


@pytest.mark.slow
def test_nan_is_refused_by_name(copied, tmp_path):
    file = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["transformer_blocks.1.attn1.to_q.weight"][0, 0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(SpecError, match=r"'transformer/.*to_q\.weight' holds NaN"):
        compress(DiffusionAdapter(), str(copied), tmp_path / "out", SPEC)


KINDS = {
    "transformer_blocks.3.attn1.to_q.weight": ((96, 96), Layout.LINEAR),
    "unet/down_blocks.0.resnets.0.conv1.weight": ((64, 64, 3, 3), Layout.CONV),
    "unet/mid_block.attentions.0.proj_in.weight": ((64, 64, 1, 1), Layout.CONV),
    "a.norm1.emb.class_embedder.embedding_table.weight": ((1001, 96), Layout.EMBEDDING),
    "unet/class_embedding.weight": ((100, 96), Layout.EMBEDDING),
    "unet/class_embedding.linear_1.weight": ((96, 96), Layout.LINEAR),
    "text_encoder/text_model.embeddings.token_embedding.weight": ((999, 96), Layout.EMBEDDING),
    "text_encoder/text_model.embeddings.position_embedding.weight": ((77, 96), None),
    "text_encoder/shared.weight": ((999, 96), None),
    "vqvae/quantize.embedding.weight": ((8192, 3), None),
    "transformer/scale_shift_table": ((6, 1152), None),
    "blocks.0.norm.weight": ((9000,), None),
    "blocks.0.to_q.bias": ((9000,), None),
    "blocks.0.small.weight": ((16, 16), None),
    "temporal.conv.weight": ((64, 64, 3), None),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_by_name_and_shape(name):
    shape, layout = KINDS[name]
    assert layout_of(name, shape) == layout


def bits(source, overrides=(), spec=SPEC):
    """Compressed tensor -> code bits per weight, or None where a policy keeps it."""
    adapter = DiffusionAdapter()
    plan = make_plan(adapter.open(str(source)), adapter, spec, overrides)
    return {t.name: t.spec.code_bits / t.spec.d for t in plan if t.spec is not None}


@pytest.mark.parametrize(("nominal", "embedder", "output"), [(1, 4, 4), (2, 8, 4), (4, 8, 4)])
def test_layers_at_either_end_get_more_bits(nominal, embedder, output, dit_folder, folder_of):
    spec = QuantSpec.preset(nominal)
    found = bits(dit_folder, spec=spec)
    block = "transformer/transformer_blocks.0."
    assert found[f"{block}attn1.to_q.weight"] == nominal
    assert found[f"{block}norm1.linear.weight"] == nominal
    assert found[f"{block}norm1.emb.timestep_embedder.linear_1.weight"] == embedder
    assert found[f"{block}norm1.emb.class_embedder.embedding_table.weight"] == 4
    assert found["transformer/proj_out_1.weight"] == output
    assert bits(folder_of("dit"), spec=spec)["proj_out_1.weight"] == output
    unet = bits(folder_of("unet_condition"), spec=spec)
    assert unet["time_embedding.linear_1.weight"] == embedder
    inner = [value for name, value in unet.items() if "attentions" in name]
    assert set(inner) == {nominal}


def test_codebooks_per_subspace_follow_the_shorter_axis(dit_folder):
    adapter = DiffusionAdapter()
    spec = SPEC.replace(scope="subspace", K=16)
    plan = {t.name: t for t in make_plan(adapter.open(str(dit_folder)), adapter, spec)}
    block = "transformer/transformer_blocks.0."
    assert plan[f"{block}ff.net.0.proj.weight"].spec.orientation == "input"  # 256 x 64
    assert plan[f"{block}ff.net.2.weight"].spec.orientation == "output"  # 64 x 256
    by_hand = spec.replace(orientation="output")
    chosen = make_plan(adapter.open(str(dit_folder)), adapter, by_hand)
    assert {t.spec.orientation for t in chosen if t.spec} == {"output"}


def test_the_users_overrides_come_last(dit_folder):
    name = "transformer/proj_out_1.weight"
    assert bits(dit_folder, (Override.parse("*proj_out_1.weight=2"),))[name] == 2
    assert name not in bits(dit_folder, (Override.parse("transformer/proj_*=keep"),))


def test_nothing_is_made_smaller_than_asked_for():
    assert policy(QuantSpec(d=1, K=256)) == ()


@pytest.mark.slow
def test_no_model_is_built_to_compress_one(dit_folder, tmp_path, monkeypatch):
    """Neither diffusers nor any of its classes is needed."""
    import torch.nn

    def forbidden(self, *args, **kwargs):
        raise AssertionError("a module was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", forbidden)
    without = EngineOptions(probe=False)
    compress(DiffusionAdapter(), str(dit_folder), tmp_path / "out", SPEC, options=without)
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.problems() == []
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "dpq"
    assert len(config["quantization_config"]["shared"]) == 2
