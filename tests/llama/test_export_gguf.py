"""``dpq export --to gguf``: files that transformers' reader, and llama.cpp, understand."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from llama_models import SHAPES

from dpq_core.errors import AdapterError, SourceError, SpecError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.export.gguf_settings import gguf_settings, interleave
from dpq_llama.export.gguf_tokens import gguf_tokens
from dpq_llama.options import GGUF_TYPES, ExportOptions

RUN = Run(device="cpu")
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 320}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "Hello  world, it's 2\n\n worlds: für 中文 !<|end|>"


def export(source, out, **options):
    return LlamaAdapter().export(str(source), "gguf", ExportOptions(**options), RUN, out)


@torch.no_grad()
def logits_of(folder, ids, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)(ids).logits


def add_tokenizer(folder, kind="byte-level", **model_options):
    """Train a tokenizer of 320 tokens and store it in a folder."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    text = ["hello world, the words of worlds are in their world; it's for für"] * 3
    if kind == "sentencepiece":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        special = ["<unk>", "<s>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(text, trainer)
        described = json.loads(tokenizer.to_str())
        bytes_are_plain = [
            t for t in described["added_tokens"] if not t["content"].startswith("<0")
        ]
        tokenizer = Tokenizer.from_str(json.dumps({**described, "added_tokens": bytes_are_plain}))
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|end|>"}
    else:
        tokenizer = Tokenizer(models.BPE(**model_options))
        steps = {
            "byte-level": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
            "digits": [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ],
            "llama3": [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
            "unknown": [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel()],
        }[kind]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=318, initial_alphabet=alphabet, special_tokens=["<s>", "<|end|>"],
            show_progress=False,
        )  # fmt: skip
        tokenizer.train_from_iterator(text, trainer)
        tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
        names = {"bos_token": "<s>", "eos_token": "<|end|>"}
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    saved.chat_template = "{{ messages[0]['content'] }}"
    saved.save_pretrained(folder)
    return saved


@pytest.fixture
def make_model(tmp_path):
    """Write a random model of any class."""

    def make(config, name="model"):
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def config_of(kind, **changes):
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    classes = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
    }
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    return classes[kind](**{**TINY, **special, **changes})


def test_an_artifact_gives_its_logits(make_folder, make_artifact, tmp_path, ids):
    artifact = make_artifact(make_folder(**SHAPES["gqa-tied"]))
    export(artifact, tmp_path / "model.gguf", type="F32")
    torch.testing.assert_close(
        logits_of(tmp_path, ids, gguf_file="model.gguf"),
        logits_of(artifact, ids),
        atol=1e-4,
        rtol=1e-4,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_model_type_gives_its_logits(make_model, tmp_path, ids, kind):
    changes = {"head_dim": 128} if kind == "qwen3" else {}  # the reader takes that for granted
    source = make_model(config_of(kind, **changes))
    export(source, tmp_path / "model.gguf", type="F32")
    torch.testing.assert_close(
        logits_of(tmp_path, ids, gguf_file="model.gguf"), logits_of(source, ids)
    )


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_types_differ_by_their_rounding(make_folder, tmp_path, ids, kind):
    from gguf import GGUFReader

    source = make_folder()
    export(source, tmp_path / "model.gguf", type=kind)
    reference = logits_of(source, ids)
    error = logits_of(tmp_path, ids, gguf_file="model.gguf") - reference
    limits = {"F32": 0, "F16": 2e-3, "BF16": 0.02, "Q8_0": 0.03, "Q5_0": 0.15, "Q5_1": 0.15}
    assert error.norm() <= limits.get(kind, 0.3) * reference.norm()
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_up.weight"] == kind
    assert types["output_norm.weight"] == "F32"
    assert types["output.weight"] == ("Q8_0" if kind[:2] in ("Q4", "Q5") else kind)


def test_columns_that_fill_no_block_are_kept_in_f16(make_folder, tmp_path):
    done = export(make_folder(**SHAPES["odd"]), tmp_path / "model.gguf", type="Q8_0")
    assert any("are F16" in note for note in done.notes)


def test_values_beyond_f16_are_refused(make_model, tmp_path):
    source = make_model(config_of("llama", tie_word_embeddings=True))
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"up_proj.*beyond those of F16"):
        export(source, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    export(source, tmp_path / "model.gguf", type="BF16")


def test_rows_of_queries_and_keys_change_places():
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert interleave(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_scaled_rotations_become_factors_or_settings():
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
    settings = gguf_settings(config_of("llama", rope_parameters=rope).to_dict(), "x")
    assert settings.rope_factors.shape == (8,)
    assert settings.rope_factors.min() == pytest.approx(1)
    assert settings.rope_factors.max() == pytest.approx(8)
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    settings = gguf_settings(config_of("llama", rope_parameters=linear).to_dict(), "x")
    assert settings.values["rope.scaling.type"] == "linear"
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(SourceError, match="'dynamic'"):
        gguf_settings(config_of("llama", rope_parameters=dynamic).to_dict(), "x")


def test_what_llama_cpp_would_compute_otherwise_is_refused():
    for changes, message in (
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"model_type": "falcon"}, "convert_hf_to_gguf"),
        ({"architectures": ["LlamaModel"]}, "no language-model head"),
    ):
        with pytest.raises(SourceError, match=message):
            gguf_settings({**config_of("llama").to_dict(), **changes}, "x")


@pytest.mark.parametrize("kind", ["byte-level", "llama3", "sentencepiece"])
def test_the_tokenizer_gives_the_same_ids(make_model, tmp_path, kind):
    from transformers import AutoTokenizer

    source = make_model(config_of("llama"))
    tokenizer = add_tokenizer(source, kind)
    export(source, tmp_path / "model.gguf")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert read(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert read.eos_token == "<|end|>"
    assert read.chat_template == tokenizer.chat_template


def test_ways_of_splitting_text_have_llama_cpps_names(tmp_path):
    tokens = {
        kind: gguf_tokens(add_tokenizer(tmp_path / kind, kind), 320)
        for kind in ("byte-level", "digits", "llama3", "sentencepiece")
    }
    names = {kind: (t.model, t.pre) for kind, t in tokens.items()}
    assert names == {
        "byte-level": ("gpt2", "gpt-2"),
        "digits": ("gpt2", "smollm"),
        "llama3": ("gpt2", "smaug-bpe"),
        "sentencepiece": ("llama", "default"),
    }
    whole = add_tokenizer(tmp_path / "whole", "llama3", ignore_merges=True)
    assert gguf_tokens(whole, 320).pre == "llama-bpe"
    unknown = add_tokenizer(tmp_path / "unknown", "unknown")
    with pytest.raises(SourceError, match="pre_tokenizer"):
        gguf_tokens(unknown, 320)
    assert gguf_tokens(unknown, 320, "viking").pre == "viking"


def test_tokens_have_types_and_ids_without_a_token_are_unused(tmp_path):
    tokens = gguf_tokens(add_tokenizer(tmp_path), 330)
    assert tokens.types[:2] == [3, 3]
    assert tokens.types[tokens.tokens.index("<think>")] == 4
    assert tokens.tokens[-1] == "[PAD329]"
    assert tokens.types[-1] == 5
    pieces = gguf_tokens(add_tokenizer(tmp_path / "pieces", "sentencepiece"), 320)
    assert pieces.types[:4] == [2, 3, 3, 6]
    assert pieces.flags["add_space_prefix"]
    with pytest.raises(SourceError, match="no row in the embedding"):
        gguf_tokens(add_tokenizer(tmp_path), 100)


def test_without_the_package_the_error_says_what_to_install(make_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(AdapterError, match=r"pip install 'dpq\[gguf\]'"):
        export(make_folder(), tmp_path / "model.gguf")
