"""The compiled decode step: the tokens and logits of transformers, for every family."""

from __future__ import annotations

import pytest
import torch
import transformers  # noqa: TID253  # this file is about its models
from llama_models import SHAPES, llama_config

import dpq
from dpq_core.errors import AdapterError, SpecError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.compiled.attached import attach
from dpq_llama.compiled.decoder import CompiledDecoder, why_not
from dpq_llama.compiled.sampling import choose, kth_largest
from dpq_llama.options import SampleOptions
from dpq_llama.serving import accelerated
from dpq_llama.source.loading import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags:UserWarning")

SIZES = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama": ("Llama", {}),
    "llama3-tied": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "llama-gelu-tanh": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}
PROMPT = torch.arange(3, 14)[None]


def model_of(name):
    """A random model of a family, whose outputs depend on every parameter."""
    family, changes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(torch.rand_like(parameter) + (0.5 if "norm" in key else -0.5))
    return model


def greedy(model, count):
    return model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=2,
    )


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_logits_are_those_of_transformers(name):
    model = model_of(name)
    decoder = CompiledDecoder(model)
    ids = decoder.generate(PROMPT, max_new_tokens=20)
    assert torch.equal(ids, greedy(model, 20))
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0, -1]
    torch.testing.assert_close(torch.tensor(decoder.logits), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "spec",
    [
        {"trellis_rate": 2.0},
        {"trellis_rate": 5.0},
        {"K": 256},
        {"K": 256, "permute": True, "stages": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", ["gqa-tied", "odd"])
def test_compressed_models_decode_as_by_transformers(make_folder, make_artifact, shape, spec):
    artifact = make_artifact(make_folder(**SHAPES[shape], eos_token_id=None), **spec)
    model = load_model(str(artifact), "cpu", "float32")
    assert why_not(model) == ""
    decoder = CompiledDecoder(model)
    ids = decoder.generate(PROMPT, max_new_tokens=12)
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0, -1]
    torch.testing.assert_close(torch.tensor(decoder.logits), logits, rtol=2e-3, atol=2e-3)
    assert torch.equal(ids, greedy(model, 12))


def test_bfloat16_weights_are_read_as_they_are():
    model = model_of("llama").bfloat16()
    decoder = CompiledDecoder(model)
    decoder.generate(PROMPT[:, :1], max_new_tokens=2)
    ids = decoder.generate(PROMPT[:, :1], max_new_tokens=2)
    with torch.no_grad():
        logits = model.float()(ids[:, :-1]).logits[0, -1]
    # Keys and values of the prompt are rounded to bfloat16.
    torch.testing.assert_close(torch.tensor(decoder.logits), logits, rtol=0.1, atol=0.1)


def test_the_cache_grows():
    model = model_of("llama")
    decoder = CompiledDecoder(model)
    ids = decoder.generate(PROMPT, max_new_tokens=300)
    assert ids.shape[1] == PROMPT.shape[1] + 300
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0, -1]
    torch.testing.assert_close(torch.tensor(decoder.logits), logits, rtol=1e-3, atol=1e-3)


def test_tokens_depend_on_the_seed_and_not_on_threads():
    decoder = CompiledDecoder(model_of("qwen3"))
    options = {"max_new_tokens": 16, "temperature": 1.2, "top_k": 50, "top_p": 0.9}
    before = torch.get_num_threads()
    try:
        texts = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            texts.append(decoder.generate(PROMPT, seed=5, **options))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], decoder.generate(PROMPT, seed=6, **options))


def test_text_ends_with_an_end_token():
    decoder = CompiledDecoder(model_of("llama"))
    tokens = list(decoder.stream(PROMPT, max_new_tokens=9))
    end = tokens[4]
    first = tokens.index(end)
    assert list(decoder.stream(PROMPT, eos_token_id=end)) == tokens[: first + 1]


def test_draws_follow_temperature_top_k_and_top_p():
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0]).numpy()
    draws = [n / 400 + 1 / 800 for n in range(400)]
    shares = torch.tensor(logits).div(0.5).softmax(0)
    counts = torch.bincount(torch.tensor([choose(logits, 0.5, 0, 1.0, u) for u in draws]))
    torch.testing.assert_close(counts / 400, shares, rtol=0, atol=0.005)
    assert {choose(logits, 1.0, 2, 1.0, u) for u in draws} == {1, 2}
    assert {choose(logits, 1.0, 0, 0.7, u) for u in draws} == {1, 2}
    assert {choose(logits, 1.0, 0, 0.6, u) for u in draws} == {1}
    assert choose(logits, 0.0, 0, 1.0, 0.99) == 1


@pytest.mark.parametrize("different", [5, 10**6])
def test_the_kth_largest_is_that_of_the_sorted_values(different):
    values = torch.randint(different, (50,)).float()
    found = [kth_largest(values.numpy(), k) for k in range(1, len(values) + 1)]
    assert found == values.sort(descending=True).values.tolist()


def test_a_model_that_it_cannot_run_says_why(make_folder, make_artifact):
    config = transformers.Gemma2Config(**SIZES, head_dim=12)
    assert why_not(transformers.Gemma2ForCausalLM(config)).startswith("the model is of the family")
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = transformers.LlamaForCausalLM(llama_config(rope_parameters=dynamic))
    with pytest.raises(AdapterError, match="rotary embedding is of the kind dynamic"):
        CompiledDecoder(model)
    artifact = make_artifact(make_folder())
    with pytest.warns(UserWarning, match="runs on transformers: codes have 4 bits"):
        loaded = dpq.load(artifact, engine="compiled")
    assert isinstance(loaded, transformers.LlamaForCausalLM)


def test_the_front_door_loads_it(make_folder, make_artifact):
    artifact = make_artifact(make_folder(), trellis_rate=2.0)
    assert isinstance(dpq.load(artifact, engine="compiled"), CompiledDecoder)
    with pytest.raises(SpecError, match="engine"):
        dpq.load(artifact, engine="other")
    with pytest.raises(AdapterError, match="cannot run models by compiled code"):
        dpq.load("builtin:clusters", adapter="gaussian", engine="compiled")


def test_options_out_of_range_are_refused():
    decoder = CompiledDecoder(model_of("llama"))
    with pytest.raises(SpecError, match="prompt"):
        decoder.generate([])
    with pytest.raises(SpecError, match="prompt"):
        decoder.generate(torch.ones(2, 3))
    with pytest.raises(SpecError, match="top_p"):
        decoder.generate([1], top_p=0.0)


def test_sampling_uses_it_where_it_can():
    texts = {}
    for engine in ("auto", "compiled", "transformers"):
        options = SampleOptions(
            max_new_tokens=8, temperature=0, prompt=("import os\n",), dtype="float32", engine=engine
        )
        sampling = LlamaAdapter().sample("builtin:tiny-llama", options, Run(device="cpu"), None)
        texts[engine] = sampling.texts
    assert texts["auto"] == texts["compiled"] == texts["transformers"]
    with pytest.raises(SpecError, match="engine"):
        SampleOptions(engine="other")


def test_plain_calls_of_generate_are_compiled_and_others_are_not():
    model = model_of("llama")
    expected = greedy(model, 9)
    usual, calls = model.generate, []
    model.generate = lambda *_, **options: calls.append(options) or usual(**options)
    attach(model)
    config = transformers.GenerationConfig(max_new_tokens=9, do_sample=False, pad_token_id=2)
    plain = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    assert torch.equal(model.generate(**plain, generation_config=config), expected)
    assert calls == []
    streamed = []

    class Streamer:
        def put(self, ids):
            streamed.extend(ids.flatten().tolist())

        def end(self):
            streamed.append("end")

    model.generate(**plain, generation_config=config, streamer=Streamer())
    assert streamed == [*expected[0].tolist(), "end"]
    config.repetition_penalty = 1.5
    penalized = model.generate(**plain, generation_config=config)
    assert len(calls) == 1
    assert not torch.equal(penalized, expected)
    config.repetition_penalty = None
    config.do_sample, config.temperature = True, 1.5
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(**plain, generation_config=config))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert len(calls) == 1


@pytest.mark.parametrize("engine", ["auto", "compiled", "transformers"])
def test_the_server_accelerates_models_unless_it_is_told_not_to(engine):
    model, said = model_of("llama"), []
    usual = model.generate
    run = Run(device="cpu", progress=lambda text, *_: said.append(text))
    assert accelerated(lambda: model, engine, run)() is model
    assert (model.generate == usual) == (engine == "transformers")
    assert said == ([] if engine != "transformers" else ["transformers generates: as asked for"])
