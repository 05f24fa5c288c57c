"""What is done with an artifact of trellis codes: calibrated, trained around, cast and saved."""

from __future__ import annotations

import pytest
import torch
from llama_models import SHAPES
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM  # noqa: TID253  # this file is about it

import dpq
import dpq_llama  # noqa: F401  # registers the quantizer
from dpq_core.artifact import Artifact
from dpq_core.tensor.pq_tensor import HALF_PARTS, expected_parts


@pytest.fixture(scope="module")
def trellis(make_folder, make_artifact):
    return make_artifact(make_folder(**SHAPES["gqa-tied"]), trellis_rate=2.0)


pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # of peft
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning"),
]


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.slow
def test_calibration_trains_scales_and_leaves_codes(trellis, tmp_path):
    options = {"samples": 8, "context": 16, "batch_size": 4, "candidates": 2}
    done = dpq.calibrate(
        str(trellis), output=tmp_path / "out", steps=4, lr=1e-2, loss="kl", **options
    )
    assert done.report.after <= done.report.before
    assert not [e for e in done.report.esteps if e.changed]
    before, after = Artifact.open(trellis), Artifact.open(tmp_path / "out")
    after.verify()
    name = "model.layers.0.mlp.up_proj.weight"
    old, new = before.read_pq(name), after.read_pq(name)
    assert torch.equal(old.codes, new.codes)
    assert torch.equal(old.stored["rates"], new.stored["rates"])
    assert torch.equal(old.stored["outliers"], new.stored["outliers"])


def test_preparing_for_training_casts_no_stored_part_in_what_is_saved(trellis, tmp_path):
    model = prepare_model_for_kbit_training(load(trellis, dtype=torch.bfloat16))
    model.save_pretrained(tmp_path / "prepared")
    weight = load(tmp_path / "prepared").model.layers[0].mlp.up_proj.weight
    kept = load(trellis).model.layers[0].mlp.up_proj.weight.parts()
    for name, part in weight.parts().items():
        assert part.dtype == kept[name].dtype, name
        assert torch.equal(part, kept[name]), name


def test_the_parts_of_float16_are_named(trellis):
    pq = Artifact.open(trellis).read_pq("model.layers.0.mlp.up_proj.weight")
    half = {n for n, (d, _) in expected_parts(pq.partition, pq.spec).items() if d.is_floating_point}
    assert half <= set(HALF_PARTS)


def test_an_adapter_has_the_outputs_and_gradients_of_the_dense_model(trellis):
    ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for dense in (False, True):
        model = load(trellis, dtype=torch.float32)
        model = model.dequantize() if dense else model
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if "lora_" in n}
        results.append((logits.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-5)
