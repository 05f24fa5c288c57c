"""Decoder-only models of many architectures: compressed, loaded, run, saved and loaded again."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from decoder_models import DECODERS, VOCABULARY, decoder_class, save_decoder
from hidden_orders import shuffled
from transformers.pytorch_utils import Conv1D  # noqa: TID253

import dpq
import dpq_llama  # noqa: F401  # registers the quantizer
from dpq_core.artifact import Artifact
from dpq_core.errors import SourceError
from dpq_core.jobs.compress import compress
from dpq_core.run import Run
from dpq_core.runtime.swap import PQModule
from dpq_core.spec import KMeansSpec, Override, QuantSpec
from dpq_llama import DPQConfig
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.options import ExportOptions

EIGHT_BITS = QuantSpec.preset(2).replace(d=1, K=256, kmeans=KMeansSpec(iterations=2, tail=1))

EXPERTS = ("llama4", "mixtral", "qwen3_moe", "deepseek_v3")

NO_ACTIVATION = ("bloom", "mpt")
"""Their classes have one activation each, which no config names."""

KEPT = (
    "router",
    "mlp.gate.",
    "moe.gate.",
    "wpe",
    "conv1d",
    "A_log",
    "vision_tower",
    "multi_modal_projector",
)
"""Parts of the names of matrices that stay dense."""

IDS = torch.arange(18).reshape(2, 9) * 11 % (VOCABULARY - 2)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    """The folder of a random model of an architecture."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("decoder") / name
        save_decoder(name, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def at_eight_bits(decoder, tmp_path_factory):
    """An artifact of a model at 8 bits per weight."""

    @cache
    def make(name: str) -> Path:
        out = tmp_path_factory.mktemp("artifact") / name
        compress(LlamaAdapter(), str(decoder(name)), out, EIGHT_BITS)
        return out

    return make


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", DECODERS)
def test_every_matrix_of_the_decoder_is_compressed(name, at_eight_bits):
    artifact = Artifact.open(at_eight_bits(name))
    matrices = [e for e in artifact.manifest.tensors if len(e.shape) >= 2]
    dense = [e.name for e in matrices if e.spec is None]
    assert [n for n in dense if not any(part in n for part in KEPT)] == []
    experts = [e for e in matrices if "expert" in e.name and e.spec is not None]
    assert bool(experts) == (name in EXPERTS)
    assert all(len(e.shape) == 2 for e in experts)  # one matrix per expert


@pytest.mark.parametrize("name", DECODERS)
def test_it_loads_runs_generates_and_survives_saving(
    name, decoder, at_eight_bits, tmp_path, caplog
):
    kind = decoder_class(name)
    expected = logits(kind.from_pretrained(decoder(name)))
    model = kind.from_pretrained(at_eight_bits(name))
    assert "UNEXPECTED" not in caplog.text
    assert "MISSING" not in caplog.text
    assert any(isinstance(module, PQModule) for module in model.modules())
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    values = logits(model)
    assert (values - expected).norm() <= 0.05 * expected.norm()
    options = {
        "attention_mask": torch.ones_like(IDS[:1]),
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
    }
    text = model.generate(input_ids=IDS[:1], **options)
    assert torch.equal(text, model.generate(input_ids=IDS[:1], use_cache=False, **options))
    model.save_pretrained(tmp_path / "again")
    again = kind.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), values)
    assert again.config.get_text_config().vocab_size == VOCABULARY


@pytest.mark.parametrize("name", DECODERS)
def test_its_config_stops_loaders_without_dpq(name, at_eight_bits):
    from transformers.activations import ACT2FN

    config = json.loads((at_eight_bits(name) / "config.json").read_text())
    text = config.get("text_config", config)
    marked = [v for v in text.values() if isinstance(v, str) and "import dpq_llama first" in v]
    assert len(marked) == 1
    known = {key: value for key, value in ACT2FN.items() if "dpq artifact" not in key}
    known |= {"eager": None} if name in NO_ACTIVATION else {}
    assert marked[0] not in known
    assert marked[0].partition(" (")[0] in known


@pytest.mark.parametrize("name", NO_ACTIVATION)
def test_a_config_without_activation_stops_loaders_by_its_attention(
    name, at_eight_bits, decoder, tmp_path, monkeypatch
):
    from transformers.quantizers import auto

    artifact, kind = at_eight_bits(name), decoder_class(name)
    model = kind.from_pretrained(artifact)
    model.save_pretrained(tmp_path / "again")
    model.dequantize().save_pretrained(tmp_path / "dense")
    wished = kind.from_pretrained(decoder(name), quantization_config=DPQConfig(bits=4))
    wished.save_pretrained(tmp_path / "wished")
    values = logits(kind.from_pretrained(tmp_path / "wished"))
    LlamaAdapter().export(str(artifact), "hf", ExportOptions(), Run(device="cpu"), tmp_path / "hf")
    configs = [
        json.loads((f / "config.json").read_text()) for f in (decoder(name), tmp_path / "hf")
    ]
    assert configs[0] == configs[1]
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "dpq")  # as without dpq
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "dpq")
    for folder in (artifact, tmp_path / "again", tmp_path / "wished"):
        with pytest.raises(ValueError, match="import dpq_llama first"):
            kind.from_pretrained(folder)
        with pytest.raises(ValueError, match="import dpq_llama first"):
            type(model).from_pretrained(folder)
    assert logits(kind.from_pretrained(tmp_path / "dense")).isfinite().all()
    assert values.isfinite().all()


@pytest.mark.parametrize("name", DECODERS)
def test_its_hidden_units_may_have_any_order(name, decoder):
    checkpoint = LlamaAdapter().open(str(decoder(name)))
    axes = list(LlamaAdapter().hidden_axes(checkpoint))
    assert bool(axes) == (name != "mamba")
    other = shuffled(checkpoint, axes)
    model = decoder_class(name).from_pretrained(decoder(name))
    before = logits(model)
    names = checkpoint.layers.names
    values = {
        place.parameter: other.read(tensor).T
        if tensor in checkpoint.transposed
        else other.read(tensor)
        for tensor in checkpoint.tensors
        if (place := names.place(tensor)).is_whole
    }
    for assembly in names.assemblies(checkpoint.tensors).values():
        values |= assembly.join(model, other.read, checkpoint.transposed)
    model.load_state_dict(values, strict=False)
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pattern", ["*experts*1*", "*experts*"])
@pytest.mark.parametrize("name", ["mixtral", "llama4"])
def test_an_expert_that_is_kept_dense_loads_beside_quantized_ones(name, pattern, decoder, tmp_path):
    rule = Override(pattern, None)
    compress(LlamaAdapter(), str(decoder(name)), tmp_path / "out", EIGHT_BITS, [rule])
    kept = [
        e.name for e in Artifact.open(tmp_path / "out").manifest.tensors if rule.matches(e.name)
    ]
    assert kept
    kind = decoder_class(name)
    expected = logits(kind.from_pretrained(decoder(name)))
    values = logits(kind.from_pretrained(tmp_path / "out"))
    assert (values - expected).norm() <= 0.05 * expected.norm()


TEXT = {"context": 8, "samples": 4, "batch_size": 2, "validation_samples": 2}


@pytest.mark.slow  # the models write the text that they read
@pytest.mark.parametrize(
    ("name", "unseen"),
    [
        ("gemma2", ""),
        ("mixtral", ""),
        ("llama4", ""),
        ("gpt2", ""),
        ("llava", ""),
    ],
)
def test_data_chooses_the_codes_of_every_layer_that_it_reaches(name, unseen, decoder, tmp_path):
    source, out = str(decoder(name)), tmp_path / "out"
    made = dpq.compress(source, out, adapter="llm", data=True, bits=3, **TEXT)
    entries = Artifact.open(out).manifest.tensors
    quantized = {e.name for e in entries if e.spec is not None}
    blind = {n for n in quantized if unseen and unseen in n}
    assert set(made.data_free) == blind
    read = {tensor for segment in made.segments for tensor in segment.tensors}
    assert read == quantized - blind
    assert logits(decoder_class(name).from_pretrained(out)).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("BertConfig", "bert is not a decoder-only language model"),
        ("T5Config", "t5 is not a decoder-only language model"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(kind, words, tmp_path):
    import transformers

    getattr(transformers, kind)().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=words) as caught:
        LlamaAdapter().open(str(tmp_path))
    assert "\n" not in str(caught.value)
