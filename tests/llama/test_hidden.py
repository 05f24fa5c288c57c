"""The hidden units of a Llama: in any order it is the same model."""

from __future__ import annotations

import pytest
import torch
from hidden_orders import shuffled
from llama_models import SHAPES

from dpq_core.artifact import Artifact
from dpq_core.runtime.swap import PQModule
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.families.policy import hidden_axes

DOWN = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_order_is_the_same_model(shape, make_folder, ids):
    from transformers import AutoModelForCausalLM

    folder = make_folder(**SHAPES[shape])
    checkpoint = LlamaAdapter().open(str(folder))
    axes = list(LlamaAdapter().hidden_axes(checkpoint))
    assert [axis.consumer for axis in axes] == DOWN
    other = shuffled(checkpoint, axes)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        before = model(ids).logits
        model.load_state_dict({name: other.read(name) for name in checkpoint.tensors}, strict=False)
        after = model(ids).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    for name in (*DOWN, "model.layers.1.mlp.up_proj.weight"):
        assert not torch.equal(other.read(name), checkpoint.read(name))
        assert torch.equal(model.get_parameter(name), other.read(name))


def test_a_model_without_a_head_has_other_names():
    shapes = {f"layers.0.mlp.{layer}_proj.weight": (6, 4) for layer in ("gate", "up")}
    shapes["layers.0.mlp.down_proj.weight"] = (4, 6)
    shapes["xlayers.0.mlp.down_proj.weight"] = (4, 6)
    (axis,) = hidden_axes(shapes)
    assert axis.consumer == "layers.0.mlp.down_proj.weight"
    assert [one.name for one in axis.producers] == [
        "layers.0.mlp.gate_proj.weight",
        "layers.0.mlp.up_proj.weight",
    ]


def test_no_order_of_hidden_units_is_stored_or_followed(tied):
    from transformers import AutoModelForCausalLM

    artifact = Artifact.open(tied)
    for name in DOWN:
        assert "permutation" not in artifact.read_parts(name)
    assert "permutation" in artifact.read_parts("model.layers.0.mlp.up_proj.weight")
    model = AutoModelForCausalLM.from_pretrained(tied)
    follows = {
        name: not module.weight.frame().keeps_inputs
        for name, module in model.named_modules()
        if isinstance(module, PQModule)
    }
    assert not any(follows[name.removesuffix(".weight")] for name in DOWN)
    assert follows["model.layers.0.self_attn.o_proj"]
