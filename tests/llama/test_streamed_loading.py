"""An uncompressed model whose blocks are read as they run: the values that transformers loads."""

from __future__ import annotations

import pytest
import torch
from decoder_models import VOCABULARY, save_decoder

from dpq_core.run import Run
from dpq_llama.calibration.task import calibration
from dpq_llama.options import CalibrateOptions
from dpq_llama.source.checkpoint import open_checkpoint
from dpq_llama.source.loading import load_folder
from dpq_llama.source.streaming import load_streamed

CPU = torch.device("cpu")
IDS = torch.arange(18).reshape(2, 9) * 11 % (VOCABULARY - 2)
KINDS = ("llama3", "mixtral", "deepseek_v3", "gemma3", "gpt2", "falcon", "llava", "mamba")


@torch.no_grad()
def output(model):
    return model(input_ids=IDS, use_cache=False)[0]


def absent(model):
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_is_what_transformers_loads(name, tmp_path):
    save_decoder(name, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    whole = load_folder(tmp_path, CPU, "float32")
    model, blocks = load_streamed(checkpoint, CPU, "float32", head=True)
    assert type(model) is type(whole)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in whole.named_parameters()]
    names = absent(model)
    assert len(names) >= 12
    assert torch.equal(output(model), output(whole))
    with blocks.hold_all():
        output(model)
        values = dict(whole.state_dict())
        assert not absent(model)
        for key, value in model.state_dict().items():
            assert torch.equal(value, values[key]), key
    assert absent(model) == names
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


def test_a_decoder_without_its_head_is_streamed_too(tmp_path):
    save_decoder("llama", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    model, _ = load_streamed(checkpoint, CPU, "float32", head=False)
    assert len(absent(model)) == 18
    assert torch.equal(output(model), output(load_folder(tmp_path, CPU, "float32", head=False)))


def test_weights_are_rounded_as_transformers_rounds_them(tmp_path):
    save_decoder("llama", tmp_path)
    model, blocks = load_streamed(open_checkpoint(str(tmp_path)), CPU, "bfloat16", head=True)
    whole = load_folder(tmp_path, CPU, "bfloat16")
    blocks.load("model.layers.1")
    weight = model.model.layers[1].mlp.up_proj.weight
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
