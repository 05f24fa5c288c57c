"""Damaged, truncated and hostile artifacts are errors before a model comes out."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import dpq_llama  # noqa: F401  # registers the quantizer
from dpq_core.errors import ArtifactError, SourceError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter

CODES = "model.layers.0.mlp.up_proj.weight.codes"
BOOKS = "model.layers.0.mlp.up_proj.weight.codebooks"


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def cut(tensors):
    tensors[CODES] = tensors[CODES][:-1].clone()


def widen(tensors):
    tensors[BOOKS] = tensors[BOOKS].float()


def poison(tensors):
    tensors[BOOKS].view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(CODES), "up_proj.weight.codes' is missing"),
        (lambda t: t.pop("model.norm.weight"), "'model.norm.weight' is missing"),
        (lambda t: t.pop("model.layers.1.input_layernorm.weight"), "is missing"),
        (cut, "up_proj.weight.codes' is"),
        (widen, "float32"),
        (poison, "NaN"),
    ],
    ids=["codes", "norm", "block-norm", "short", "dtype", "nan"],
)
def test_damaged_weights_of_a_resaved_model(change, words, resaved):
    edit_tensors(resaved, change)
    with pytest.raises(ArtifactError, match=words) as caught:
        load(resaved)
    one_line(caught)


@pytest.mark.slow
def test_codes_out_of_range_are_found(make_folder, make_artifact, tmp_path):
    load(make_artifact(make_folder(), K=5)).save_pretrained(tmp_path / "odd")
    edit_tensors(tmp_path / "odd", lambda t: t[CODES].fill_(255))
    with pytest.raises(ArtifactError, match="a code is 7"):
        load(tmp_path / "odd")


def test_a_truncated_file_of_a_resaved_model(resaved):
    path = resaved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load(resaved)


def test_the_manifest_is_checked_where_there_is_one(tied, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tied, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for attempt in (load, lambda f: LlamaAdapter().load(str(f), Run(device="cpu"))):
        with pytest.raises(ArtifactError, match="cut or changed"):
            attempt(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2 is not known"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"dtype": "int12"}, "unknown dtype 'int12'"),
        ({"specs": [{"d": 0}]}, "damaged"),
        ({"specs": []}, "out of range"),
        ({"specs": 3}, "damaged"),
        ({"tensors": {"model.layers.0.mlp.up_proj.weight": -1}}, "out of range"),
        ({"tensors": {"model.layers.9.mlp.up_proj.weight": 0}}, "does not have"),
        ({"tensors": {"model.layers.0.input_layernorm.weight": 0}}, "is no Linear, Conv2d"),
        ({"tensors": {"model": 0}}, "does not have"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_a_hostile_quantization_config(changes, words, resaved, edit_config):
    quantization = json.loads((resaved / "config.json").read_text())["quantization_config"]
    edit_config(resaved, quantization_config={**quantization, **changes})
    with pytest.raises(ArtifactError, match=words) as caught:
        load(resaved)
    one_line(caught)


def test_an_artifact_is_not_compressed_again(tied):
    with pytest.raises(SourceError, match="already quantized"):
        LlamaAdapter().open(str(tied))
