"""Compressed text encoders: loaded by transformers with dpq, and refused by it without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusion_models
import pytest
import torch

from dpq_core.artifact import Artifact
from dpq_core.errors import ArtifactError
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.run import Run
from dpq_core.runtime import PQWeight
from dpq_core.spec import QuantSpec
from dpq_diffusion.adapter import DiffusionAdapter
from dpq_diffusion.hub.registration import MARK
from dpq_diffusion.options import CompressOptions as Own

QUICK = QuantSpec.preset(2, K=16, kmeans={"iterations": 2, "tail": 1})
TOKENS = torch.arange(1, 7)[None]
SMALL = {"vocab_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}


def t5(**changes: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"vocab_size": 96, "d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 1}
    return T5EncoderModel(T5Config(num_heads=2, **{**sizes, **changes}))


def bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SMALL, hidden_size=64, intermediate_size=64))


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 32}
    return Gemma2Model(Gemma2Config(**SMALL, **sizes))


ENCODERS = {
    "clip": diffusion_models.text_encoder,
    "t5": t5,
    "t5-gated": lambda: t5(feed_forward_proj="gated-gelu"),
    "bert": bert,
    "gemma": gemma,
}


@pytest.fixture(scope="module")
def made(text_folder, tmp_path_factory) -> dict[str, tuple[Path, Any]]:
    """Kind -> artifact of a pipeline with that text encoder, and the encoder uncompressed."""
    import shutil

    found = {}
    for kind, build in ENCODERS.items():
        folder = tmp_path_factory.mktemp("text") / kind
        shutil.copytree(text_folder, folder)
        model = diffusion_models._lively(build())
        shutil.rmtree(folder / "text_encoder")
        model.save_pretrained(folder / "text_encoder")
        index = json.loads((folder / "model_index.json").read_text())
        index["text_encoder"] = ["transformers", type(model).__name__]
        (folder / "model_index.json").write_text(json.dumps(index))
        out = tmp_path_factory.mktemp("artifact") / kind
        own = Own(components="text_encoder")
        options = CompressOptions(probe=False, adapter=own)
        compress(DiffusionAdapter(), str(folder), out, QUICK, options=options)
        found[kind] = out, model
    return found


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS)[0]


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_gives_what_its_decoded_weights_give(kind, made, tmp_path):
    out, dense = made[kind]
    loaded = type(dense).from_pretrained(out / "text_encoder")
    assert sum(isinstance(m, PQWeight) for m in loaded.modules()) >= 4
    artifact = Artifact.open(out)
    names = [n for n in artifact.names() if n.startswith("text_encoder/")]
    values = {n.removeprefix("text_encoder/"): artifact.read(n) for n in names}
    twin = type(dense)(dense.config).eval()
    state = twin.state_dict()
    prefixes = ("", "text_model.")
    for name in state:
        key = next((p + name for p in prefixes if p + name in values), None)
        state[name] = state[name] if key is None else values[key]
    twin.load_state_dict(state)
    if hasattr(twin, "tie_weights"):
        twin.tie_weights()
    torch.testing.assert_close(output(loaded), output(twin), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(output(loaded), output(dense), atol=1e-3)
    loaded.save_pretrained(tmp_path / "again")
    again = type(dense).from_pretrained(tmp_path / "again")
    assert torch.equal(output(again), output(loaded))
    loaded.dequantize()
    assert "dpq" not in json.dumps(loaded.config.to_dict(), default=str)
    torch.testing.assert_close(output(loaded), output(again), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_without_the_import_every_way_to_it_fails_and_says_what_to_do(made, tmp_path):
    import diffusers  # noqa: F401 - the same process may hold both; the one below does not

    cases = []
    for kind, (out, dense) in made.items():
        again = tmp_path / kind
        type(dense).from_pretrained(out / "text_encoder").save_pretrained(again)
        name = type(dense).__name__
        cases += [(name, str(out / "text_encoder")), (name, str(again)), ("AutoModel", str(again))]
        cases.append(("DiffusionPipeline", str(out)))
    code = f"""
import diffusers, transformers
for name, folder in {cases!r}:
    kind = getattr(transformers, name, None) or getattr(diffusers, name)
    try:
        kind.from_pretrained(folder)
        print("loaded", name, folder)
    except Exception as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stderr
    assert [line for line in lines if "import dpq_diffusion first" not in line] == []


def test_t5_keeps_the_activation_that_it_derives(made):
    """``gated-gelu`` means ``gelu_new``."""
    written = {
        kind: json.loads((made[kind][0] / "text_encoder" / "config.json").read_text())
        for kind in ("t5", "t5-gated")
    }
    assert written["t5"]["dense_act_fn"] == MARK.add("relu")
    assert written["t5-gated"]["dense_act_fn"] == MARK.add("gelu_new")
    assert MARK.add_to_json({"feed_forward_proj": "gated-silu"})["dense_act_fn"] == MARK.add("silu")
    assert MARK.add_to_json({"feed_forward_proj": "gated-gelu"})["dense_act_fn"] == MARK.add(
        "gelu_new"
    )


def test_nested_configs_are_marked_too():
    config = {"text_config": {"hidden_act": "silu"}, "vision_config": {"hidden_act": "gelu"}}
    assert MARK.add_to_json(config) == {
        "text_config": {"hidden_act": MARK.add("silu")},
        "vision_config": {"hidden_act": MARK.add("gelu")},
    }
    assert config["text_config"]["hidden_act"] == "silu"


def test_an_encoder_that_names_no_activation_has_its_attention_marked(
    text_folder, tmp_path, monkeypatch
):
    import shutil

    from transformers import CLIPTextModel
    from transformers.quantizers import auto

    folder, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(text_folder, folder)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    del config["hidden_act"]
    path.write_text(json.dumps(config))
    options = CompressOptions(probe=False, adapter=Own(components="text_encoder"))
    compress(DiffusionAdapter(), str(folder), out, QUICK, options=options)
    config = json.loads((out / "text_encoder" / "config.json").read_text())
    assert config["attn_implementation"] == MARK.add("eager")
    model = CLIPTextModel.from_pretrained(out / "text_encoder")
    assert output(model).isfinite().all()
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "dpq_component")  # as without dpq
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "dpq_component")
    with pytest.raises(ValueError, match="import dpq_diffusion first"):
        CLIPTextModel.from_pretrained(out / "text_encoder")


@pytest.mark.parametrize("name", ["final_layer_norm.weight", "fc1.weight.codes", "fc1.bias"])
def test_a_missing_tensor_is_an_error(name, made, tmp_path):
    from safetensors.torch import load_file, save_file

    out, dense = made["clip"]
    type(dense).from_pretrained(out / "text_encoder").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (gone,) = [n for n in tensors if n.endswith(name)]
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match="is missing from the weight files"):
        type(dense).from_pretrained(tmp_path)


def test_the_whole_pipeline_loads_with_the_import(made):
    pipeline = DiffusionAdapter().load(str(made["clip"][0]), Run(device="cpu"))
    assert any(isinstance(m, PQWeight) for m in pipeline.text_encoder.modules())
