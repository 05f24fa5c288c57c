"""``from_pretrained(quantization_config=DPQConfig(bits=2))`` of an uncompressed model."""

from __future__ import annotations

import json

import pytest
import torch
from llama_models import SHAPES

from dpq_core.errors import ArtifactError, SpecError
from dpq_core.jobs.in_memory import quantize_
from dpq_core.runtime import PQEmbedding, PQLinear
from dpq_core.spec import QuantSpec
from dpq_llama import DPQConfig
from dpq_llama.adapter import LlamaAdapter

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}


def load(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["plain", "gqa-tied"])
def test_it_equals_quantize_and_is_an_artifact_once_saved(shape, make_folder, ids, tmp_path):
    source = make_folder(**SHAPES[shape], **TINY)
    model = load(source, quantization_config=DPQConfig(bits=2))
    assert isinstance(model.get_input_embeddings(), PQEmbedding)
    assert isinstance(model.lm_head, PQLinear)
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.dtype == torch.float32

    expected, spec = load(source), QuantSpec.preset(2)
    policy = LlamaAdapter().overrides(spec, LlamaAdapter().open(str(source)))
    quantize_(expected, spec, filter=lambda *_: True, overrides=policy)
    parts = expected.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, parts[name]), name

    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["hidden_act"] == "silu (dpq artifact: import dpq_llama first)"
    assert config["quantization_config"]["dtype"] == "float32"
    assert "bits" not in config["quantization_config"]
    again = load(tmp_path / "saved")
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.slow
def test_the_dtype_asked_for_is_that_of_the_activations(make_folder):
    config = DPQConfig(bits=2)
    model = load(make_folder(**TINY), quantization_config=config, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.model.norm.weight.dtype == torch.bfloat16
    dense = model.dequantize()
    assert dense.dtype == torch.bfloat16
    assert dense.config.hidden_act == "silu"


def test_a_config_that_says_nothing_or_too_much_is_refused(make_folder):
    with pytest.raises(SpecError, match="bits"):
        DPQConfig(bits=17)
    with pytest.raises(SpecError, match="not quantized"):
        load(make_folder(**TINY), quantization_config=DPQConfig())
    with pytest.raises(SpecError, match="not quantized"):
        load(make_folder(**TINY), quantization_config=DPQConfig(dtype="float32"))
    with pytest.raises(ArtifactError, match="bits"):
        DPQConfig(bits=2, tensors={"lm_head.weight": 0}, specs=[{}])
