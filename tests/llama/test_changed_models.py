"""What is done with a loaded language model besides running it: casts, sizes, copies, traces."""

from __future__ import annotations

import copy

import pytest
import torch
from llama_models import SHAPES
from transformers import AutoModelForCausalLM  # noqa: TID253  # this file is about it

import dpq_llama
from dpq_core.runtime import PQEmbedding, PQWeight


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.fixture
def untied(make_folder, make_artifact):
    return make_artifact(make_folder(**SHAPES["plain"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_model_runs_in_the_dtype_and_is_saved_whole(dtype, tied, ids, tmp_path):
    model = load(tied).to(dtype)
    logits = model(ids).logits
    assert model.dtype == logits.dtype == dtype
    model.save_pretrained(tmp_path / "cast")
    again = load(tmp_path / "cast")
    assert again.dtype == dtype
    torch.testing.assert_close(again(ids).logits, logits, rtol=0.1, atol=0.1)
    stored, original = again.state_dict(), load(tied).state_dict()
    for name, value in original.items():
        if ".weight." in name:
            assert torch.equal(stored[name], value), name


def test_half_is_refused_as_for_other_quantizers(tied):
    with pytest.raises(ValueError, match="not supported for quantized model"):
        load(tied).half()


def test_parameters_are_counted_as_in_the_uncompressed_model(make_folder, make_artifact):
    for shape in ("plain", "gqa-tied"):
        source = make_folder(**SHAPES[shape])
        model, dense = load(make_artifact(source)), load(source)
        assert model.num_parameters() == dense.num_parameters()
        without = model.num_parameters(exclude_embeddings=True)
        assert without == dense.num_parameters(exclude_embeddings=True)
        assert model.num_parameters(only_trainable=True) == 0


@pytest.mark.parametrize("size", [240, 100])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_table_of_another_size_is_dense_and_is_saved_so(kind, size, request, ids, tmp_path):
    model = load(request.getfixturevalue(kind))
    some = ids % 100
    before = model(some).logits
    table = model.resize_token_embeddings(size)
    assert type(table) is torch.nn.Embedding
    assert (model.lm_head.weight is table.weight) == (kind == "tied")
    logits = model(some).logits
    kept = min(size, 211)
    torch.testing.assert_close(logits[..., :kept], before[..., :kept], rtol=1e-4, atol=1e-4)
    assert logits.shape[-1] == size
    model.save_pretrained(tmp_path / "resized")
    again = load(tmp_path / "resized")
    assert again.config.vocab_size == size
    assert isinstance(again.model.layers[0].mlp.up_proj.weight, PQWeight)
    assert torch.equal(again(some).logits, logits)


def test_the_same_size_changes_nothing(tied):
    model = load(tied)
    assert isinstance(model.resize_token_embeddings(211), PQEmbedding)


@pytest.mark.parametrize("token", [211, 255, -1])
def test_a_token_outside_the_table_is_refused_as_by_a_dense_one(token, tied):
    with pytest.raises(IndexError, match="outside the table of 211 entries"):
        load(tied)(torch.tensor([[token]]))


def test_states_and_copies_carry_everything(tied, ids):
    model = load(tied)
    logits, state = model(ids).logits, copy.deepcopy(model.state_dict())
    for assign in (False, True):
        other = load(tied)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(0)
        other.load_state_dict(state, assign=assign)
        assert torch.equal(other(ids).logits, logits)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids).logits, logits)
    twin.resize_token_embeddings(240)
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize(
    "given", [{"quant_method": "dpq"}, {"quant_method": "dpq", "bits": 3}, "object"], ids=str
)
def test_a_quantization_config_at_load_gives_way_to_the_stored_one(given, tied, ids):
    config = dpq_llama.DPQConfig() if given == "object" else given
    with pytest.warns(UserWarning, match="from the model will be used"):
        model = load(tied, quantization_config=config)
    assert torch.equal(model(ids).logits, load(tied)(ids).logits)


def test_a_dict_quantizes_a_dense_model_while_it_is_loaded(make_folder, ids):
    model = load(make_folder(), quantization_config={"quant_method": "dpq", "bits": 3})
    assert isinstance(model.model.layers[0].mlp.up_proj.weight, PQWeight)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # about the model's own code
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_traced_model_runs_other_tokens_once_it_is_loaded(tied, ids, tmp_path):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = load(tied)

        def forward(self, ids):
            return self.model(ids, use_cache=False).logits

    module = Logits().eval()
    torch.jit.trace(module, (ids,)).save(str(tmp_path / "traced.pt"))
    assert (tmp_path / "traced.pt").stat().st_size < 200_000  # codes, not decoded weights
    traced = torch.jit.load(str(tmp_path / "traced.pt"))
    for tokens in (ids, (ids + 5) % 211):
        torch.testing.assert_close(traced(tokens), module(tokens), rtol=1e-4, atol=1e-4)
