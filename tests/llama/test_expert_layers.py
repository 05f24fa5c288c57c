"""Statistics of experts and of Conv1D: each matrix has those of the inputs that it multiplies."""

from __future__ import annotations

import json

import pytest
import torch
from decoder_models import VOCABULARY, decoder_class, save_decoder
from transformers.pytorch_utils import Conv1D  # noqa: TID253

import dpq
import dpq_llama  # noqa: F401  # registers the quantizer
from dpq_core.artifact import Artifact
from dpq_core.data.statistics import collect
from dpq_core.errors import ArtifactError
from dpq_core.jobs.compress import compress
from dpq_core.run import Run
from dpq_core.spec import KMeansSpec, QuantSpec
from dpq_llama import DPQConfig
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.options import ExportOptions
from dpq_llama.source.checkpoint import open_checkpoint
from dpq_llama.source.loading import load_folder
from dpq_llama.source.streaming import load_streamed

CPU = torch.device("cpu")
IDS = torch.arange(64).reshape(2, 32) * 11 % (VOCABULARY - 2)
QUICK = QuantSpec.preset(2).replace(d=1, K=256, kmeans=KMeansSpec(iterations=2, tail=1))
TEXT = {"context": 32, "samples": 16, "batch_size": 4, "validation_samples": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a random model by the name of its architecture."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save_decoder(name, made[name])
        return made[name]

    return make


@torch.no_grad()
def inputs_of(model, path, rows_of):
    """Rows by expert (or ``None``) that the module of transformers multiplies, by its own hook."""
    seen = {}

    def take(module, args):
        for expert, rows in rows_of(module, *args):
            seen[expert] = rows

    handle = model.get_submodule(path).register_forward_pre_hook(take)
    model(input_ids=IDS, use_cache=False)
    handle.remove()
    return seen


def routed(module, hidden, index, weights):
    for expert in range(module.num_experts):
        yield expert, hidden[(index == expert).any(dim=1)]


def batched(module, hidden):
    for expert, rows in enumerate(hidden.chunk(module.num_experts)):
        yield expert, rows[rows.abs().sum(dim=1) > 0]


@pytest.mark.parametrize(
    ("name", "path", "rows_of"),
    [
        ("mixtral", "model.layers.1.mlp.experts", routed),
        ("qwen3_moe", "model.layers.1.mlp.experts", routed),
        ("llama4", "model.layers.1.feed_forward.experts", batched),
    ],
)
def test_every_expert_has_the_statistics_of_the_tokens_routed_to_it(name, path, rows_of, folder):
    expected = inputs_of(load_folder(folder(name), CPU, "float32"), path, rows_of)
    streamed = load_streamed(open_checkpoint(str(folder(name))), CPU, "float32", head=True)
    paths = [p for p, _ in streamed.model.named_modules() if p.startswith(f"{path}.gate_up_proj.")]
    layers = [p for p in paths if p[-3:-2].isdigit()]
    with torch.no_grad():
        found = collect(
            streamed.model, layers, lambda: streamed.model(input_ids=IDS, use_cache=False)
        )
    reached = {expert for expert, rows in expected.items() if len(rows)}
    assert {int(layer.split(".")[-2]) for layer in found} == reached
    for layer, statistics in found.items():
        rows = expected[int(layer.split(".")[-2])]
        assert statistics.count == len(rows)
        torch.testing.assert_close(
            statistics.hessian, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5
        )
        assert f"{layer}.weight" in streamed.tensors


def test_a_conv1d_has_the_statistics_of_a_linear(folder):
    path = "transformer.h.1.mlp.c_fc"
    model = load_folder(folder("gpt2"), CPU, "float32")
    assert isinstance(model.get_submodule(path), Conv1D)
    rows = inputs_of(model, path, lambda _, x: [(None, x.flatten(0, 1))])[None]
    streamed = load_streamed(open_checkpoint(str(folder("gpt2"))), CPU, "float32", head=True)
    with torch.no_grad():
        found = collect(
            streamed.model, [path], lambda: streamed.model(input_ids=IDS, use_cache=False)
        )
    torch.testing.assert_close(found[path].hessian, rows.T @ rows / len(rows))


@torch.no_grad()
def logits(folder, name):
    return decoder_class(name).from_pretrained(folder)(input_ids=IDS).logits


@pytest.mark.slow  # the models write the text that they read
@pytest.mark.parametrize("name", ["gpt2", "mixtral", "llama4"])
def test_data_lowers_the_error_of_the_outputs(name, folder, tmp_path):
    expected, errors = logits(folder(name), name), {}
    for data in (True, False):
        out = tmp_path / str(data)
        options = {**(TEXT if data else {}), "set": ("trellis_rate=0",)}  # gains of codebooks
        made = dpq.compress(str(folder(name)), out, adapter="llm", data=data, bits=3, **options)
        assert made.data_free == ()
        assert all(segment.passes == 1 for segment in made.segments)
        errors[data] = (logits(out, name) - expected).norm()
    assert errors[True] < 0.97 * errors[False]


@pytest.mark.slow  # the model writes the text that it reads
def test_an_expert_that_no_token_reaches_is_named(tmp_path):
    from transformers import AutoModelForCausalLM

    save_decoder("mixtral", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.config.num_experts_per_tok = 1
    gate = model.model.layers[1].mlp.gate.weight
    with torch.no_grad():
        gate[1], gate[2] = -gate[0], 0  # one of two opposite scores is above 0
    model.save_pretrained(tmp_path / "model")
    made = dpq.compress(
        str(tmp_path / "model"), tmp_path / "out", adapter="llm", data=True, bits=3, **TEXT
    )
    block = "model.layers.1.block_sparse_moe.experts"
    unreached = {f"{block}.2.{kind}.weight" for kind in ("w1", "w2", "w3")}
    assert unreached <= set(made.data_free)
    assert all(".experts." in name for name in made.data_free)
    assert logits(tmp_path / "out", "mixtral").isfinite().all()


@pytest.mark.parametrize("name", ["gpt2", "llama4"])
def test_transposed_weights_come_back_as_transformers_has_them(name, folder, tmp_path):
    source, artifact = str(folder(name)), tmp_path / "artifact"
    compress(LlamaAdapter(), source, artifact, QUICK)
    config = json.loads((artifact / "config.json").read_text())["quantization_config"]
    shapes = {entry.name: entry.shape for entry in Artifact.open(artifact).manifest.tensors}
    original = load_folder(folder(name), CPU, "float32").state_dict()
    assert config["transposed"]
    for tensor in config["transposed"]:
        stored = original.get(tensor)
        stored = original[tensor.rpartition(".")[0]][0] if stored is None else stored
        assert shapes[tensor] == tuple(stored.T.shape)
    expected = logits(artifact, name)
    assert (expected - logits(source, name)).norm() <= 0.05 * expected.norm()

    LlamaAdapter().export(str(artifact), "hf", ExportOptions(), Run(device="cpu"), tmp_path / "hf")
    torch.testing.assert_close(logits(tmp_path / "hf", name), expected, rtol=1e-4, atol=1e-4)
    LlamaAdapter().export(source, "hf", ExportOptions(), Run(device="cpu"), tmp_path / "copy")
    assert torch.equal(logits(tmp_path / "copy", name), logits(source, name))

    model = decoder_class(name).from_pretrained(artifact).dequantize()
    model.save_pretrained(tmp_path / "dense")
    dense = load_folder(tmp_path / "dense", CPU, "float32")
    assert dense.state_dict().keys() == original.keys()
    assert {k: v.shape for k, v in dense.state_dict().items()} == {
        k: v.shape for k, v in original.items()
    }
    torch.testing.assert_close(logits(tmp_path / "dense", name), expected, rtol=1e-4, atol=1e-4)


def test_a_conv1d_is_quantized_while_loading_as_it_is_by_compress(folder, tmp_path):
    model = decoder_class("gpt2").from_pretrained(
        folder("gpt2"), quantization_config=DPQConfig(bits=4)
    )
    compress(LlamaAdapter(), str(folder("gpt2")), tmp_path / "out", QuantSpec.preset(4))
    artifact = Artifact.open(tmp_path / "out")
    name = "transformer.h.0.attn.c_attn.weight"
    codes = model.transformer.h[0].attn.c_attn.weight.state_dict()["codes"]
    assert torch.equal(codes, artifact.read_parts(name)["codes"])
    model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "saved", "gpt2"), model(input_ids=IDS).logits)


def test_a_conv1d_that_is_not_stored_transposed_is_decoded_when_it_is_loaded(folder, tmp_path):
    out = tmp_path / "out"
    compress(AsStored(), str(folder("gpt2")), out, QUICK)
    model = decoder_class("gpt2").from_pretrained(out)
    assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)
    expected = logits(folder("gpt2"), "gpt2")
    assert (logits(out, "gpt2") - expected).norm() <= 0.05 * expected.norm()


class AsStored(LlamaAdapter):
    """Stores Conv1D weights as transformers has them, as dpq did first."""

    def open(self, source):
        checkpoint = super().open(source)
        for name in checkpoint.transposed:
            info = checkpoint.tensors[name]
            checkpoint.tensors[name] = type(info)(info.shape[::-1], info.dtype)
        checkpoint.transposed = frozenset()
        return checkpoint


def test_a_config_that_calls_another_layer_transposed_is_refused(folder, tmp_path):
    compress(LlamaAdapter(), str(folder("gpt2")), tmp_path / "out", QUICK)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["transposed"].append("transformer.wte.weight")
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"no Conv1D 'transformer\.wte'"):
        logits(tmp_path / "out", "gpt2")
