"""Which folders are opened, which are refused, and what is read from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from llama_models import SHAPES, llama_config
from safetensors.torch import load_file, save_file

from dpq_core.errors import ArtifactError, SourceError, SpecError
from dpq_core.planning.plan import make_plan
from dpq_core.run import Run
from dpq_core.spec import Override, QuantSpec
from dpq_core.tensor.partition import Layout
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.families.layers import DecoderLayers
from dpq_llama.options import CalibrateOptions
from dpq_llama.source.architecture import meta_model
from dpq_llama.source.checkpoint import open_checkpoint


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(make_folder, tmp_path):
    """A copy of a plain model that may be spoiled."""
    return Path(shutil.copytree(make_folder(), tmp_path / "model"))


@pytest.fixture
def sharded(make_folder, tmp_path):
    return Path(shutil.copytree(make_folder(max_shard_size="50KB"), tmp_path / "sharded"))


def refused(source, words, kind=SourceError):
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(str(source))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_of_the_model_is_expected(shape, make_folder, tmp_path):
    from transformers import LlamaForCausalLM

    config = llama_config(**SHAPES[shape])
    with torch.device("meta"):
        expected = {n: tuple(v.shape) for n, v in LlamaForCausalLM(config).state_dict().items()}
    folder = Path(shutil.copytree(make_folder(**SHAPES[shape]), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert tensors.keys() == expected.keys() - tied
    assert open_checkpoint(str(folder)).layers.names.shapes == expected
    for name in tensors:
        others = {n: value for n, value in tensors.items() if n != name}
        save_file(others, folder / "model.safetensors", metadata={"format": "pt"})
        refused(folder, f"'{name}' is missing")


def test_sizes_that_a_config_leaves_out_are_those_of_transformers():
    from transformers import LlamaConfig

    config = meta_model({"model_type": "llama"}, Path("config.json")).config
    assert config.hidden_size == LlamaConfig().hidden_size
    assert config.num_hidden_layers == LlamaConfig().num_hidden_layers


@pytest.mark.parametrize(
    ("name", "shape", "layout"),
    [
        ("model.layers.1.self_attn.q_proj.weight", (8, 8), Layout.LINEAR),
        ("layers.1.mlp.down_proj.weight", (8, 8), Layout.LINEAR),
        ("lm_head.weight", (8, 8), Layout.LINEAR),
        ("model.embed_tokens.weight", (8, 8), Layout.EMBEDDING),
        ("model.layers.1.self_attn.q_proj.bias", (8,), None),
        ("model.layers.1.input_layernorm.weight", (8,), None),
        ("model.norm.weight", (8,), None),
        ("score.weight", (2, 8), None),
        ("model.layers.1.mlp.down_proj.weight", (8, 0), None),
    ],
)
def test_what_is_compressed(name, shape, layout):
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        layers = DecoderLayers(LlamaForCausalLM(llama_config()))
    assert layers.layout_of(name, shape) is layout


def test_the_policy_comes_before_the_user(make_folder):
    adapter = LlamaAdapter()
    checkpoint = adapter.open(str(make_folder()))
    plan = {t.name: t.spec for t in make_plan(checkpoint, adapter, QuantSpec.preset(1))}
    assert plan["model.embed_tokens.weight"].d == plan["lm_head.weight"].d == 2
    assert plan["model.layers.0.mlp.up_proj.weight"].d == 8
    user = [Override("lm_head.weight", {"d": 3}), Override("*embed*", None)]
    plan = {t.name: t.spec for t in make_plan(checkpoint, adapter, QuantSpec.preset(1), user)}
    assert plan["lm_head.weight"].d == 3
    assert plan["model.embed_tokens.weight"] is None
    assert adapter.overrides(QuantSpec.preset(4), checkpoint) == ()


def test_shards_hold_the_same_as_one_file(make_folder, sharded):
    whole, parts = open_checkpoint(str(make_folder())), open_checkpoint(str(sharded))
    assert len(parts.files) > 2
    assert dict(whole.tensors).keys() == dict(parts.tensors).keys()
    assert all(torch.equal(whole.read(name), parts.read(name)) for name in whole.tensors)


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "x.bin",
        "",
        None,
        3,
        ".safetensors",
    ],
)
def test_an_index_cannot_point_elsewhere(shard, sharded):
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.norm.weight"] = shard
    index.write_text(json.dumps(data))
    refused(sharded, "not a file of this folder")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', "{}", "[" * 100_000])
def test_a_broken_index(text, sharded):
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, "index.json")


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00009.safetensors").unlink(missing_ok=True)
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink(missing_ok=True)
    refused(sharded, "model-0000[23]-of-.* is missing")


def test_a_tensor_that_the_index_promises_is_in_no_shard(sharded):
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["ghost"] = next(iter(data["weight_map"].values()))
    index.write_text(json.dumps(data))
    refused(sharded, "'ghost' is in none of the shards")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "nonsense"}, "model_type is 'nonsense', which transformers 5"),
        ({"model_type": "t5"}, "t5 is not a decoder-only language model"),
        ({"model_type": None}, "model_type is None"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized .*'gptq'"),
        ({"hidden_size": "big"}, "not a valid llama config .*hidden_size"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_key_value_heads": "x"}, "not a valid llama config .*num_key_value_heads"),
        ({"intermediate_size": 97}, r"is \[96, 64\], the config asks for \[97, 64\]"),
        ({"num_hidden_layers": 3}, "'model.layers.2.* is missing"),
        ({"attention_bias": True}, r"q_proj.bias' is missing"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_configs_that_do_not_fit(changes, words, folder, edit_config):
    edit_config(folder, **changes)
    refused(folder, words)


def test_folders_that_are_no_model(tmp_path, folder):
    refused(tmp_path / "none", "no such file or folder")
    refused(folder / "config.json", "give the model's folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    (tmp_path / "empty" / "params.json").write_text("{}")
    refused(tmp_path / "empty", "convert_llama_weights_to_hf")
    (folder / "model.safetensors").unlink()
    refused(folder, "no model.safetensors and no")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(folder, "save_pretrained")
    (folder / "config.json").write_text("{")
    refused(folder, "not readable JSON")


def test_a_damaged_weight_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    refused(folder, "not a readable safetensors file")


def test_a_half_written_artifact_is_named(tmp_path):
    (tmp_path / "out.partial").mkdir()
    refused(tmp_path / "out", "half-written", ArtifactError)


def test_an_untied_model_without_a_head_is_refused(folder):
    edit_weights(folder, lambda t: t.pop("lm_head.weight"))
    refused(folder, "'lm_head.weight' is missing")


def test_a_copy_of_a_tied_head_is_dropped_and_another_head_is_kept(make_folder, tmp_path):
    folder = Path(shutil.copytree(make_folder(tie_word_embeddings=True), tmp_path / "model"))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(folder, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    checkpoint = open_checkpoint(str(folder))
    assert "lm_head.weight" not in checkpoint.tensors
    assert checkpoint.config["tie_word_embeddings"] is True
    edit_weights(folder, lambda t: t["lm_head.weight"].add_(1))
    checkpoint = open_checkpoint(str(folder))
    assert "lm_head.weight" in checkpoint.tensors
    assert checkpoint.config["tie_word_embeddings"] is False


def test_rotary_buffers_of_old_checkpoints_are_left_out(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda t: t.update({name: torch.ones(8)}))
    assert name not in open_checkpoint(str(folder)).tensors


def test_side_files_are_the_tokenizer_and_the_licence_never_code_or_weights(folder):
    for name in ("tokenizer.json", "tokenizer.py", "LICENSE.txt", "notes.txt", "tokenizer.bin"):
        (folder / name).write_text("x")
    found = set(open_checkpoint(str(folder)).side_files)
    assert found == {"generation_config.json", "tokenizer.json", "LICENSE.txt"}


def test_unknown_builtin_names_list_the_known_ones():
    refused("builtin:tiny-lama", "did you mean builtin:tiny-llama.*available: ")
    refused("builtin:../builtin/tiny-llama", "no builtin model")


@pytest.mark.parametrize("source", ["owner/none", "gpt2-none", "owner/name@main"])
def test_hub_ids_without_network_are_one_line(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(source, "not in the cache, and the hub cannot be reached")


def test_shards_without_an_index_are_read_where_all_are_there(sharded, make_folder):
    (sharded / "model.safetensors.index.json").unlink()
    whole = open_checkpoint(str(make_folder()))
    assert dict(open_checkpoint(str(sharded)).tensors).keys() == dict(whole.tensors).keys()
    sorted(sharded.glob("model-*.safetensors"))[-1].unlink()
    refused(sharded, "no model.safetensors and no")


def test_the_head_of_a_classifier_stays(make_folder, make_artifact, tmp_path, ids):
    from transformers import LlamaForSequenceClassification as Classifier

    folder = tmp_path / "model"
    Classifier(llama_config(num_labels=3)).save_pretrained(folder)
    plan = make_plan(open_checkpoint(str(folder)), LlamaAdapter(), QuantSpec.preset(2))
    assert [t.name for t in plan if t.spec is None and len(t.info.shape) == 2] == ["score.weight"]
    model = Classifier.from_pretrained(make_artifact(folder))
    assert torch.equal(model.score.weight, Classifier.from_pretrained(folder).score.weight)
    assert model(ids).logits.shape == (2, 3)


def test_a_gguf_file_is_told_what_to_do(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "m.gguf", r"gguf_file='m.gguf'\).save_pretrained\(NEW\)")


def scaled(folder, edit_config, name="model.layers.0.mlp.up_proj.weight"):
    """Store a weight as 8-bit floats with a scale per block of 32 x 16; returns its values."""
    tensors = load_file(folder / "model.safetensors")
    rows, cols = tensors[name].shape
    scales = torch.rand(-(-rows // 32), -(-cols // 16)) + 0.5
    stored = (tensors[name] * 4).to(torch.float8_e4m3fn)
    large = scales.repeat_interleave(32, 0)[:rows].repeat_interleave(16, 1)[:, :cols]
    edit_weights(folder, lambda t: t.update({name: stored, f"{name}_scale_inv": scales}))
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 16]})
    return (stored.float() * large).to(torch.bfloat16)


def test_block_scaled_weights_are_read_as_bfloat16(folder, edit_config):
    name = "model.layers.0.mlp.up_proj.weight"
    values = scaled(folder, edit_config)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.tensors[name].dtype == torch.bfloat16
    assert torch.equal(checkpoint.read(name), values)
    assert f"{name}_scale_inv" not in checkpoint.tensors
    assert "quantization_config" not in checkpoint.config
    with pytest.raises(SpecError, match="without data only; use data=False"):
        LlamaAdapter().calibration(str(folder), str(folder), CalibrateOptions(), Run(device="cpu"))


def test_block_scaled_weights_whose_scales_do_not_fit_are_refused(folder, edit_config):
    scaled(folder, edit_config)
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]})
    refused(folder, "up_proj.weight_scale_inv' is .*, not")
    edit_config(folder, quantization_config={"quant_method": "fp8"})
    refused(folder, "weight_block_size None")


def test_the_only_variant_of_the_weights_is_read_and_loaded(folder):
    from dpq_llama.source.loading import load_folder

    expected = open_checkpoint(str(folder)).tensors
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert open_checkpoint(str(folder)).tensors == expected
    model = load_folder(folder, torch.device("cpu"))
    state = load_file(folder / "model.fp16.safetensors")
    assert torch.equal(model.model.norm.weight, state["model.norm.weight"])
    shutil.copy(folder / "model.fp16.safetensors", folder / "model.bf16.safetensors")
    refused(folder, "the variants bf16, fp16 and no plain weights")


def test_folders_that_are_something_else_are_named_for_what_they_are(folder, tmp_path):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, "a git-lfs pointer, not the weights: run `git lfs pull`")
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, "the download is incomplete: fetch it again")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    refused(adapter, "an adapter of peft without its model; merge it first")


def test_chat_templates_come_along_with_their_folder(folder):
    more = folder / "additional_chat_templates"
    more.mkdir()
    for path in (folder / "chat_template.jinja", more / "tools.jinja"):
        path.write_text("{{ messages }}")
    found = open_checkpoint(str(folder)).side_files
    assert {"chat_template.jinja", "additional_chat_templates/tools.jinja"} <= found.keys()
