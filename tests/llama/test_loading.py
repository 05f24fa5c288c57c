"""``from_pretrained`` of an artifact: the same model as one with the decoded weights."""

from __future__ import annotations

import copy

import pytest
import torch
from llama_models import SHAPES
from torch import nn
from transformers import (  # noqa: TID253  # this file is about it
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaForCausalLM,
)

import dpq_llama  # noqa: F401  # registers the quantizer
from dpq_core.runtime import PQEmbedding, PQLinear
from dpq_core.spec import Override


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def same_state(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_the_decoded_weights(
    shape, make_folder, make_artifact, dense_twin, ids
):
    source = make_folder(**SHAPES[shape])
    folder = make_artifact(source)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert isinstance(model.get_input_embeddings(), PQEmbedding)
    linears = [m for m in model.modules() if type(m) is nn.Linear]
    assert linears == []
    expected = logits(dense_twin(folder, source), ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    # One token at a time takes the other kernel.
    torch.testing.assert_close(logits(model, ids[:1, :1]), expected[:1, :1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"K": 5, "d": 3},
        {"orientation": "output", "d": 4},
        {"scope": "subspace", "row_scale": False},
        {"scope": "tensor", "codebook_dtype": "float32", "K": 300},
        {"codebook_dtype": "bfloat16"},
    ],
    ids=["odd-codes", "output", "subspace", "wide-codes", "bfloat16-books"],
)
def test_every_kind_of_spec_loads(changes, make_folder, make_artifact, dense_twin, ids):
    source = make_folder(**SHAPES["odd-tied"])
    folder = make_artifact(source, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(dense_twin(folder, source), ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_sharded_sources_and_sharded_artifacts(make_folder, make_artifact, dense_twin, ids):
    from dpq_core.jobs.compress import CompressOptions

    whole = make_folder(**SHAPES["gqa-tied"])
    shards = make_folder(**SHAPES["gqa-tied"], max_shard_size="50KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    small = CompressOptions(probe=False, shard_bytes=10_000)
    folder = make_artifact(shards, options=small)
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(
        logits(model, ids), logits(AutoModelForCausalLM.from_pretrained(make_artifact(whole)), ids)
    )
    torch.testing.assert_close(
        logits(model, ids), logits(dense_twin(folder, whole), ids), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [None, "auto", torch.float32, torch.bfloat16, torch.float16])
def test_the_asked_dtype_is_that_of_the_activations_only(
    stored, asked, make_folder, make_artifact, ids
):
    folder = make_artifact(make_folder(dtype=stored, **SHAPES["gqa-tied"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=asked)
    wanted = stored if asked in (None, "auto") else asked
    assert model.dtype == model.model.dtype == wanted
    assert logits(model, ids).dtype == wanted
    assert model.model.norm.weight.dtype == wanted
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.codes.dtype == torch.uint8
    assert weight.codebooks.dtype == weight.row_scale.dtype == torch.float16
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(exact.model.layers[0].mlp.up_proj.weight.codebooks, weight.codebooks)
    difference = (logits(model, ids).float() - logits(exact, ids)).abs().max()
    assert difference <= (0.15 if wanted == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
@pytest.mark.parametrize("shape", ["gqa-tied", "biases"])
def test_saving_after_a_forward_pass_reloads_exactly(
    shape, dtype, make_folder, make_artifact, ids, tmp_path
):
    folder = make_artifact(make_folder(**SHAPES[shape]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    first = logits(model, ids)
    model.generate(ids[:1], max_new_tokens=3, do_sample=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again.dtype == model.dtype
    same_state(model, again)
    assert torch.equal(logits(again, ids), first)
    again.save_pretrained(tmp_path / "third")
    same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "third"), model)


def test_a_tied_head_shares_the_weight_and_is_stored_once(tied, ids):
    model = AutoModelForCausalLM.from_pretrained(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(name.startswith("lm_head") for name in model.state_dict())
    model.tie_weights()  # what training scripts call
    assert model.lm_head.weight is model.model.embed_tokens.weight
    twin = copy.deepcopy(model)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    assert twin.lm_head.weight is not model.lm_head.weight
    assert torch.equal(logits(twin, ids), logits(model, ids))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["gqa-tied", "plain"])
@pytest.mark.parametrize("kept", ["*embed_tokens*", "*.0.*", "*"])
def test_kept_tensors_stay_ordinary_modules(
    kept, shape, make_folder, make_artifact, dense_twin, ids, tmp_path
):
    source = make_folder(**SHAPES[shape])
    folder = make_artifact(source, (Override(kept, None),))
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(dense_twin(folder, source), ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_maps(device_map, tied, ids):
    model = AutoModelForCausalLM.from_pretrained(tied, device_map=device_map)
    assert torch.equal(logits(model, ids), logits(AutoModelForCausalLM.from_pretrained(tied), ids))


def test_generation_uses_the_cache_and_agrees_with_recomputation(tied, ids):
    model = AutoModelForCausalLM.from_pretrained(tied)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    text = model.generate(ids[:1], **options)
    assert text.shape == (1, 17)
    assert torch.equal(text, model.generate(ids[:1], use_cache=False, **options))


def test_nothing_needs_a_gradient_so_that_no_graph_keeps_decoded_weights(tied, ids):
    model = AutoModelForCausalLM.from_pretrained(tied)
    assert model(ids).logits.grad_fn is None


@pytest.mark.slow
def test_a_bare_decoder_loads_from_a_whole_model_and_from_its_own(
    make_folder, make_artifact, tmp_path, ids
):
    source = make_folder()
    whole = make_artifact(source)
    hidden = AutoModel.from_pretrained(whole)(ids).last_hidden_state
    expected = AutoModelForCausalLM.from_pretrained(whole).model(ids).last_hidden_state
    assert torch.equal(hidden, expected)
    AutoModel.from_pretrained(source).save_pretrained(tmp_path / "bare")
    bare = AutoModel.from_pretrained(make_artifact(tmp_path / "bare"))
    assert bare.layers[0].mlp.up_proj.weight.partition.d == 4
    assert isinstance(bare.layers[0].mlp.up_proj, PQLinear)


@pytest.mark.slow
def test_dequantize_gives_an_ordinary_model(make_folder, make_artifact, dense_twin, ids, tmp_path):
    source = make_folder(**SHAPES["odd-tied"])
    folder = make_artifact(source)
    model = AutoModelForCausalLM.from_pretrained(folder).dequantize(torch.float32)
    assert not any(isinstance(m, PQLinear | PQEmbedding) for m in model.modules())
    assert torch.equal(logits(model, ids), logits(dense_twin(folder, source), ids))
    model.save_pretrained(tmp_path / "dense")
    config = AutoConfig.from_pretrained(tmp_path / "dense")
    assert config.hidden_act == "silu"
    assert not hasattr(config, "quantization_config")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), ids), logits(model, ids)
    )


def test_trust_remote_code_loads_and_survives_saving(tied, ids, tmp_path):
    options = {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(tied, **options)
    assert type(model).__name__ == "DPQLlamaForCausalLM"
    plain = AutoModelForCausalLM.from_pretrained(tied)
    assert torch.equal(logits(model, ids), logits(plain, ids))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", **options)
    assert torch.equal(logits(again, ids), logits(plain, ids))
    # Without remote code the stub is not copied, so nothing may point to it.
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **options)
    assert torch.equal(logits(again, ids), logits(plain, ids))
