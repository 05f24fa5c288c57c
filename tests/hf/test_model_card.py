"""The cards of artifacts, read by the parser of the hub's own library."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

from dpq_core.tensor.checkpoint import TensorInfo
from dpq_hf.model_card import model_card

ORIGINAL = """\
---
license: apache-2.0
language: [en]
---
# A model
"""


def card(folder, source=None):
    entry = SimpleNamespace(relative_error=0.25, spec=0)
    checkpoint = SimpleNamespace(tensors={"a": TensorInfo((4, 8), torch.float16)})
    spec = SimpleNamespace(d=4, K=256)
    manifest = SimpleNamespace(
        source=source or str(folder), stored_nbytes=16, specs=(spec,), tensors=(entry,)
    )
    text = model_card(
        checkpoint,
        manifest,
        folder=folder,
        package="dpq_llama",
        library="transformers",
        task="text-generation",
        sentence="A model.",
        example="pass",
        more="## Run\n",
        row="this model",
    )
    return ModelCard(text)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "SmallModel"
    made.mkdir()
    return made


def test_the_hub_reads_licence_origin_library_and_task(folder):
    (folder / "README.md").write_text(ORIGINAL)
    read = card(folder)
    assert read.data.license == "apache-2.0"
    assert read.data.base_model == "SmallModel"
    assert read.data.to_dict()["base_model_relation"] == "quantized"
    assert read.data.library_name == "transformers"
    assert read.data.pipeline_tag == "text-generation"
    assert "dpq" in read.data.tags
    assert read.data.language == ["en"]
    assert "| this model | 16 | 4.000 | 0.2500 |" in read.text


def test_a_hub_id_is_the_base_model_and_an_unknown_licence_is_said_to_be(folder):
    read = card(folder, "owner/name@main")
    assert read.data.base_model == "owner/name"
    assert read.data.license == "other"
    assert read.data.to_dict()["license_name"] == "license-of-the-base-model"


@pytest.mark.parametrize("text", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "no metadata", ""])
def test_a_card_that_cannot_be_read_is_none(text, folder):
    (folder / "README.md").write_text(text)
    assert card(folder).data.license == "other"
