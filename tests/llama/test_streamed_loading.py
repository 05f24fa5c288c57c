"""An uncompressed model whose blocks are read as they run: the values that transformers loads."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil

import pytest
import torch
from decoder_models import VOCABULARY, save_decoder

from dpq_core.data.sequential.contract import SequentialOptions
from dpq_core.data.sequential.reference import Reference
from dpq_core.data.streamed_blocks import StreamedBlocks
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.run import Run
from dpq_core.spec import AssignmentSpec, KMeansSpec, QuantSpec
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.calibration import task as task_module
from dpq_llama.calibration.task import calibration
from dpq_llama.options import CalibrateOptions
from dpq_llama.source.checkpoint import BUILTIN, open_checkpoint
from dpq_llama.source.loading import load_folder
from dpq_llama.source.streaming import StreamedModel, load_streamed

CPU = torch.device("cpu")
IDS = torch.arange(18).reshape(2, 9) * 11 % (VOCABULARY - 2)
KINDS = ("llama3", "mixtral", "llama4", "deepseek_v3", "gemma3", "gpt2", "falcon", "llava", "mamba")


@torch.no_grad()
def output(model):
    return model(input_ids=IDS, use_cache=False)[0]


def absent(model):
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


def as_in_transformers(model, name):
    """The values of a model with Linear modules in place of Conv1D and of fused experts."""
    values, stacks = {}, {}
    for key, value in model.state_dict().items():
        if name == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight", key):
            values[key] = value.T
        elif match := re.fullmatch(r"(.*experts.*)\.(\d+)\.\d+\.weight", key):
            stacks.setdefault(match[1], {}).setdefault(int(match[2]), []).append(value)
        else:
            values[key] = value
    for key, experts in stacks.items():
        stack = torch.stack([torch.cat(experts[number]) for number in range(len(experts))])
        values[key] = stack.mT if name == "llama4" else stack
    return values


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_is_what_transformers_loads(name, tmp_path):
    tolerance = 1e-5 if name == "llama4" else 0  # sums of zeros are left out
    save_decoder(name, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    whole = load_folder(tmp_path, CPU, "float32")
    streamed = load_streamed(checkpoint, CPU, "float32", head=True)
    model, blocks = streamed.model, streamed.blocks
    assert type(model) is type(whole)
    assert as_in_transformers(model, name).keys() == whole.state_dict().keys()
    names = absent(model)
    assert len(names) >= 12
    torch.testing.assert_close(output(model), output(whole), rtol=0, atol=tolerance)
    with blocks.hold_all():
        output(model)
        values = dict(whole.state_dict())
        assert not absent(model)
        for key, value in as_in_transformers(model, name).items():
            assert torch.equal(value, values[key]), key
    assert absent(model) == names
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


def test_a_decoder_without_its_head_is_streamed_too(tmp_path):
    save_decoder("llama", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    streamed = load_streamed(checkpoint, CPU, "float32", head=False)
    assert len(absent(streamed.model)) == 18
    assert torch.equal(
        output(streamed.model), output(load_folder(tmp_path, CPU, "float32", head=False))
    )


def test_weights_are_rounded_as_transformers_rounds_them(tmp_path):
    save_decoder("llama", tmp_path)
    streamed = load_streamed(open_checkpoint(str(tmp_path)), CPU, "bfloat16", head=True)
    whole = load_folder(tmp_path, CPU, "bfloat16")
    streamed.blocks.load("model.layers.1")
    weight = streamed.model.model.layers[1].mlp.up_proj.weight
    assert weight.dtype is torch.bfloat16
    assert torch.equal(weight, whole.model.layers[1].mlp.up_proj.weight)


def test_the_student_of_a_compression_has_no_block_in_memory(tmp_path):
    save_decoder("llama", tmp_path)
    options = CalibrateOptions(samples=4, validation_samples=2, context=8, batch_size=2)
    task = calibration(str(tmp_path), str(tmp_path), options, Run(device="cpu"))
    assert len(absent(task.student)) == 18
    assert [task.streamed.is_absent(path) for path in task.blocks()] == [True, True]
    with torch.no_grad():
        task.loss(task.validation()[0])
    assert [task.streamed.is_absent(path) for path in task.blocks()] == [True, False]


LAYERS = 4
QUICK = QuantSpec(
    d=4, K=4, kmeans=KMeansSpec(iterations=1, tail=1), assignment=AssignmentSpec(method="ldlq+icm")
)
WINDOWS = CalibrateOptions(samples=4, validation_samples=2, context=8, batch_size=2)


def compress_with_data(folder, out, **options):
    """Compress a model with data; returns the bytes of its weights as a hash."""
    compress(
        LlamaAdapter(),
        str(folder),
        out,
        QUICK,
        options=CompressOptions(probe=False, sequential=SequentialOptions(batches=2), **options),
        run=Run(device="cpu"),
        task=lambda: calibration(str(folder), str(folder), WINDOWS, Run(device="cpu")),
    )
    (file,) = out.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def deep(make_folder):
    """A model with a tokenizer, so that it reads text and need not write any."""
    folder = make_folder(num_hidden_layers=LAYERS, vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / "tiny-llama" / name, folder)
    return folder


def in_memory(model):
    """Numbers of the decoder layers that have weights in memory."""
    return [
        number
        for number, layer in enumerate(model.model.layers)
        if not all(parameter.is_meta for parameter in layer.parameters())
    ]


def load_whole(checkpoint, device, dtype, *, head):
    model = load_folder(checkpoint.folder, device, dtype, head=head)
    blocks = StreamedBlocks(model, {}, lambda _: {})
    return StreamedModel(model=model, blocks=blocks, tensors=checkpoint.stored_names())


@pytest.mark.slow  # two whole runs of a job
def test_two_blocks_are_in_memory_at_most_with_the_same_bytes(deep, tmp_path, monkeypatch):
    blocks, load = [], StreamedBlocks.load

    def counting(self, path):
        load(self, path)
        blocks.append(in_memory(self._model))

    monkeypatch.setattr(StreamedBlocks, "load", counting)
    streamed = compress_with_data(deep, tmp_path / "streamed")
    assert max(map(len, blocks)) == 2
    assert {number for loaded in blocks for number in loaded} == set(range(LAYERS))
    monkeypatch.setattr(task_module, "load_streamed", load_whole)
    blocks.clear()
    assert streamed == compress_with_data(deep, tmp_path / "whole")
    assert all(len(loaded) == LAYERS for loaded in blocks)


@pytest.mark.slow  # two whole runs of a job
def test_a_stopped_run_goes_on_where_it_was(deep, tmp_path, monkeypatch):
    whole = compress_with_data(deep, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(real, self, segment, *arguments):
        if segment.name == "model.layers.2":
            raise StoppedError
        return real(self, segment, *arguments)

    monkeypatch.setattr(Reference, "pause", functools.partialmethod(_call, stop, Reference.pause))
    with pytest.raises(StoppedError):
        compress_with_data(deep, tmp_path / "out")
    monkeypatch.undo()
    reads, read = [], StreamedBlocks.load
    monkeypatch.setattr(
        StreamedBlocks,
        "load",
        lambda self, path: (reads.append(path) if self.is_absent(path) else None, read(self, path)),
    )
    assert whole == compress_with_data(deep, tmp_path / "out", resume=True)
    # Finished blocks are read only to try the head on one batch of the whole model, in the end.
    layers = [f"model.layers.{number}" for number in range(LAYERS)]
    assert reads == [*layers[2:], *layers[:3]]


def _call(self, function, real, *arguments):
    return function(real, self, *arguments)
