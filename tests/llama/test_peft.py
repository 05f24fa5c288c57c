"""Adapters of peft around a compressed language model, as around the dense model it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import (  # noqa: TID253  # this file is about it
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
)

import dpq_llama  # noqa: F401  # registers the quantizer
from dpq_core.runtime import PQWeight

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # of peft
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning"),
]

TARGETS = ["q_proj", "v_proj", "up_proj"]
LORA = {"r": 4, "target_modules": TARGETS, "init_lora_weights": False}
CONFIGS = {
    "lora": lambda: LoraConfig(**LORA),
    "all-linear": lambda: LoraConfig(**{**LORA, "target_modules": "all-linear"}),
    "embedding": lambda: LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    "dora": lambda: LoraConfig(**LORA, use_dora=True),
    "whole-head": lambda: LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "ia3": lambda: IA3Config(
        target_modules=TARGETS, feedforward_modules=["up_proj"], init_ia3_weights=False
    ),
    "oft": lambda: OFTConfig(target_modules=TARGETS, oft_block_size=16, init_weights=False),
}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def adapted(base, config):
    torch.manual_seed(0)
    return get_peft_model(base, config).eval()


def step(model, ids):
    """Logits, and the gradient of every trained parameter."""
    out = model(ids, labels=ids)
    out.loss.backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return out.logits.detach(), trained


@pytest.fixture
def dense(tied):
    return load(tied).dequantize(torch.float32)


@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_train_save_and_reload_as_around_a_dense_model(kind, tied, dense, ids, tmp_path):
    model = adapted(load(tied), CONFIGS[kind]())
    logits, gradients = step(model, ids)
    expected, dense_gradients = step(adapted(dense, CONFIGS[kind]()), ids)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == dense_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dense_gradients[name], rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(tied), tmp_path / "adapter").eval()
    assert torch.equal(again(ids).logits, logits)


def test_nothing_dense_is_kept_for_the_backward_pass(tied, ids):
    model, shapes = adapted(load(tied), CONFIGS["lora"]()), set()
    weights = {tuple(m.shape) for m in model.modules() if isinstance(m, PQWeight)}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: shapes.add(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    ):
        model(ids, labels=ids).loss.backward()
    assert not shapes & weights


@pytest.mark.parametrize("safe", [False, True], ids=["plain", "safe"])
def test_a_merged_model_is_dense_where_it_was_adapted_and_is_saved_so(safe, tied, ids, tmp_path):
    model = adapted(load(tied), CONFIGS["lora"]())
    logits = model(ids).logits
    merged = model.merge_and_unload(safe_merge=safe)
    layer = merged.model.layers[0].self_attn
    assert type(layer.q_proj) is torch.nn.Linear
    assert isinstance(layer.k_proj.weight, PQWeight)
    torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert isinstance(again.model.layers[0].self_attn.k_proj.weight, PQWeight)
    assert torch.equal(again(ids).logits, merged(ids).logits)


def test_adapters_are_merged_and_unmerged_and_switched_off(tied, ids):
    model, plain = adapted(load(tied), CONFIGS["lora"]()), load(tied)(ids).logits
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, plain)
    logits = model(ids).logits
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(model(ids).logits, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(adapted(load(tied), CONFIGS["lora"]()).unload()(ids).logits, plain)


def test_transformers_loads_adapters_too(tied, ids, tmp_path):
    model = adapted(load(tied), CONFIGS["lora"]())
    model.save_pretrained(tmp_path / "adapter")
    direct = load(tied)
    direct.load_adapter(tmp_path / "adapter")
    assert torch.equal(direct(ids).logits, model(ids).logits)
    direct.save_pretrained(tmp_path / "again")  # adapter weights only
    other = load(tied)
    other.load_adapter(tmp_path / "again")
    assert torch.equal(other(ids).logits, model(ids).logits)


def test_a_merged_embedding_stays_tied_to_its_head(tied, ids, tmp_path):
    merged = adapted(load(tied), CONFIGS["embedding"]()).merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    merged.save_pretrained(tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again(ids).logits, merged(ids).logits)


def test_prompts_are_tuned_before_a_quantized_table(tied, dense, ids):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    logits, gradients = step(adapted(load(tied), copy.deepcopy(config)), ids)
    expected, dense_gradients = step(adapted(dense, config), ids)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dense_gradients[name], rtol=1e-3, atol=1e-4)


def test_preparing_for_training_casts_no_stored_part_in_what_is_saved(tied, ids, tmp_path):
    model = prepare_model_for_kbit_training(load(tied, dtype=torch.bfloat16))
    model.save_pretrained(tmp_path / "prepared")
    weight = load(tmp_path / "prepared").model.layers[0].mlp.up_proj.weight
    kept = load(tied).model.layers[0].mlp.up_proj.weight
    assert weight.codebooks.dtype == torch.float16
    assert torch.equal(weight.codebooks, kept.codebooks)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_the_trainer_trains_the_adapter_and_nothing_else(checkpointing, tied, ids, tmp_path):
    model = adapted(load(tied), LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        activation_checkpointing=checkpointing,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": row, "labels": row} for row in ids]
    result = Trainer(model=model, args=arguments, train_dataset=data).train()
    assert result.training_loss > 0
    after = model.state_dict()
    for name, value in after.items():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_the_trainer_asks_for_an_adapter_where_there_is_none(tied, ids, tmp_path):
    with pytest.raises(ValueError, match="attach trainable adapters"):
        Trainer(model=load(tied), args=TrainingArguments(str(tmp_path), use_cpu=True))
