"""Tiny Llama folders and artifacts made of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import searches
import torch
from llama_models import SHAPES, llama_config

from dpq_core.artifact import Artifact
from dpq_core.jobs.compress import CompressOptions, compress
from dpq_core.spec import QuantSpec
from dpq_llama.adapter import LlamaAdapter

QUICK = {"iterations": 2, "tail": 1}


@pytest.fixture(autouse=True, scope="module")
def shorten(short_searches) -> None:
    """Compress quickly."""


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """Write a random Llama and return its folder (the same one for the same arguments)."""

    @cache
    def make(*, dtype=torch.float32, max_shard_size="5GB", seed=0, **changes) -> Path:
        from transformers import LlamaForCausalLM

        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama_config(**changes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # zeros at first, which would hide a lost bias
                    parameter.normal_(std=0.5)
                elif parameter.ndim == 2:  # large enough that outputs depend on every layer
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
        folder = tmp_path_factory.mktemp("llama") / "model"
        model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return make


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory):
    """Compress a folder and return the artifact's (the same one for the same arguments)."""

    @cache
    def make(source, overrides=(), *, options=None, **changes) -> Path:
        spec = QuantSpec.preset(2, K=16, kmeans=QUICK).replace(**changes)
        out = tmp_path_factory.mktemp("artifact") / "out"
        # Fixtures of a session may come before those of a module: the artifact is the same anyway.
        with searches.ended_early():
            compress(LlamaAdapter(), str(source), out, spec, overrides, options=options)
        return out

    return make


@pytest.fixture(scope="session")
def tied(make_folder, make_artifact) -> Path:
    """An artifact of a tied model with grouped-query attention."""
    return make_artifact(make_folder(**SHAPES["gqa-tied"]))


@pytest.fixture
def resaved(tied, tmp_path):
    """A copy of ``tied`` that transformers saved again: no manifest."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tied).save_pretrained(tmp_path / "resaved")
    return tmp_path / "resaved"


@pytest.fixture(scope="session")
def dense_twin():
    """The uncompressed transformers model whose weights are the decoded ones of an artifact."""

    def make(folder: Path, source: Path, dtype=torch.float32):
        from transformers import AutoModelForCausalLM

        artifact = Artifact.open(folder)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        weights = {name: artifact.read(name).float() for name in artifact.names()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert unexpected == []
        assert missing == (["lm_head.weight"] if model.config.tie_word_embeddings else [])
        return model.to(dtype)

    return make


@pytest.fixture
def edit_config():
    """Change keys of a folder's ``config.json``; None removes one."""

    def edit(folder: Path, **changes) -> None:
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return edit


@pytest.fixture(scope="session")
def ids():
    """Two sequences of nine tokens: more than the look-up kernel takes."""
    return torch.arange(18).reshape(2, 9) * 11 % 211


@pytest.fixture(scope="session")
def no_probe():
    """Compress without loading the result."""
    return CompressOptions(probe=False)
