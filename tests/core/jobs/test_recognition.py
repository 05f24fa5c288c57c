"""The adapter that a source alone gives, where users name none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from plugins import install_plugin
from repo import ROOT

import dpq
from dpq_core.errors import AdapterError, DPQError, SourceError
from dpq_core.jobs.request import adapter_of
from dpq_core.plugin import registry

ADAPTERS = ROOT / "adapters"

PLUGIN = """
from dpq_core.plugin.adapter import TensorAdapter

class Own(TensorAdapter):
    name = "own"
    summary = "takes .own files"
    recognized = "a .own file"
    def open(self, source): raise NotImplementedError

    @classmethod
    def recognizes(cls, path):
        return path.suffix in (".own", ".ply")
"""


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A third party's adapter that takes ``.own`` files, and claims ``.ply`` files too."""
    before = set(sys.modules)
    modules = {"own_plugin": PLUGIN}
    points = {"own": "own_plugin:Own"}
    site = tmp_path / "site"
    install_plugin(monkeypatch, site, distribution="dpq-own", points=points, modules=modules)
    yield
    for name in {"own_plugin", "spoilt_plugin"} & (set(sys.modules) - before):
        del sys.modules[name]


def _folder(path: Path, **files: str) -> Path:
    """A folder of files whose names have ``_json`` in place of ``.json``."""
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("_json", ".json")).write_text(text)
    return path


def _file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("source", "adapter"),
    [
        ("dpq_llama/builtin/tiny-llama", "llama"),
        ("dpq_diffusion/builtin/tiny-dit", "diffusion"),
        ("dpq_diffusion/builtin/tiny-dit/transformer", "diffusion"),
        ("dpq_gaussian/builtin/tiny-scene/scene.ply", "gaussian"),
    ],
)
def test_real_models_give_their_adapter(source, adapter):
    assert adapter_of(None, str(ADAPTERS / source)).name == adapter


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.gguf", "A.SPZ", "a.splat", "a.sog"])
def test_files_give_their_adapter_by_their_names(tmp_path, name):
    adapters = {"pt": "diffusion", "pth": "diffusion", "ckpt": "diffusion", "gguf": "llama"}
    source = str(_file(tmp_path / name))
    assert adapter_of(None, source).name == adapters.get(name.rpartition(".")[2], "gaussian")


def test_a_pipeline_with_a_config_of_transformers_is_a_pipeline(tmp_path):
    source = _folder(tmp_path / "a", config_json='{"model_type": "x"}', model_index_json="{}")
    assert adapter_of(None, str(source)).name == "diffusion"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"hidden_size": 8}'])
def test_a_config_that_says_nothing_is_nobodys(tmp_path, text):
    source = _folder(tmp_path / "a", config_json=text)
    with pytest.raises(AdapterError) as caught:
        adapter_of(None, str(source))
    message = str(caught.value)
    assert "is not a dpq artifact, and no adapter recognizes it (" in message
    assert "llama: a folder whose config.json has a model_type" in message
    assert "say its domain with adapter (installed: diffusion, gaussian, llama)" in message
    assert "\n" not in message


def test_a_third_partys_source_gives_its_adapter(own, tmp_path):
    assert adapter_of(None, str(_file(tmp_path / "a.own"))).name == "own"
    with pytest.raises(AdapterError, match=r"own: a \.own file"):
        adapter_of(None, str(_file(tmp_path / "a.other")))


def test_a_source_of_two_adapters_is_left_to_the_user(own, tmp_path):
    source = str(_file(tmp_path / "a.ply"))
    with pytest.raises(AdapterError) as caught:
        adapter_of(None, source)
    assert str(caught.value) == (
        f"{source} is recognized by the adapters gaussian and own; choose one with adapter"
    )
    assert adapter_of("own", source).name == "own"


@pytest.mark.parametrize(
    "spoilt",
    [
        "1 / 0",
        PLUGIN.replace('"own"', '"spoilt"').replace("return path.suffix in", "return 1 / 0,"),
    ],
    ids=["module", "method"],
)
def test_a_broken_plugin_spoils_only_itself(own, monkeypatch, tmp_path, spoilt):
    points = {"spoilt": "spoilt_plugin:Own"}
    modules = {"spoilt_plugin": spoilt}
    site = tmp_path / "other"
    install_plugin(monkeypatch, site, distribution="dpq-spoilt", points=points, modules=modules)
    assert adapter_of(None, str(_file(tmp_path / "a.own"))).name == "own"
    assert [a.name for a in registry.recognizing(tmp_path / "a.own")] == ["own"]


def test_the_first_source_that_exists_counts(tmp_path):
    scene = str(_file(tmp_path / "a.ply"))
    assert adapter_of(None, "owner/name", scene).name == "gaussian"


def test_a_missing_source_is_called_missing(tmp_path):
    with pytest.raises(SourceError) as caught:
        adapter_of(None, str(tmp_path / "none"))
    assert str(caught.value) == f"{tmp_path / 'none'}: no such file or folder"
    with pytest.raises(SourceError, match="owner/name: no such file or folder; if it is a hub id"):
        adapter_of(None, "owner/name")


def test_every_verb_of_python_finds_the_adapter(tmp_path):
    scene = str(_file(tmp_path / "a.splat"))
    out = tmp_path / "out"
    calls = {
        "plan": lambda: dpq.plan(scene),
        "compress": lambda: dpq.compress(scene, out),
        "evaluate": lambda: dpq.evaluate(scene),
        "sample": lambda: dpq.sample(scene, output=tmp_path / "samples"),
        "export": lambda: dpq.export(scene, out, to="ply"),
        "load": lambda: dpq.load(scene),
    }
    for verb, call in calls.items():
        with pytest.raises(DPQError) as caught:
            call()
        assert "adapter" not in str(caught.value), verb
        assert "a.splat" in str(caught.value), verb
