"""``dpq export --to hf``: a dense folder that needs no dpq."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from llama_models import SHAPES

from dpq_core.errors import SourceError, SpecError
from dpq_core.run import Run
from dpq_llama.adapter import LlamaAdapter
from dpq_llama.export.source import _with_stacks
from dpq_llama.options import ExportOptions

RUN = Run(device="cpu")


def export(source, out, **options):
    return LlamaAdapter().export(str(source), "hf", ExportOptions(**options), RUN, out)


@torch.no_grad()
def logits_of(folder, ids):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)(ids).logits


@pytest.mark.parametrize("shape", ["gqa-tied", "biases"])
def test_the_folder_gives_the_logits_of_the_artifact(
    make_folder, make_artifact, tmp_path, ids, shape
):
    source = make_folder(**SHAPES[shape])
    artifact = make_artifact(source)
    done = export(artifact, tmp_path / "dense")
    assert set(done.files) == set((tmp_path / "dense").iterdir())
    torch.testing.assert_close(
        logits_of(tmp_path / "dense", ids), logits_of(artifact, ids), atol=1e-4, rtol=1e-4
    )
    written = json.loads((tmp_path / "dense" / "config.json").read_text())
    original = json.loads((source / "config.json").read_text())
    assert written == original


def test_an_uncompressed_model_is_written_as_it_is(make_folder, tmp_path, ids):
    source = make_folder(dtype=torch.bfloat16)
    export(source, tmp_path / "dense")
    assert torch.equal(logits_of(tmp_path / "dense", ids), logits_of(source, ids))


def test_large_models_have_shards_and_an_index(make_folder, tmp_path, ids):
    source = make_folder()
    done = export(source, tmp_path / "dense", shard_size="100kB")
    names = [path.name for path in done.files]
    assert "model.safetensors.index.json" in names
    assert sum(name.startswith("model-0") for name in names) > 1
    assert torch.equal(logits_of(tmp_path / "dense", ids), logits_of(source, ids))


def test_tokenizer_and_other_files_come_along(tmp_path):
    done = export("builtin:tiny-llama", tmp_path / "dense")
    names = {path.name for path in done.files}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names


def test_a_model_is_replaced_and_other_things_are_not(make_folder, tmp_path):
    source = make_folder()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "old.txt").write_text("")
    export(source, tmp_path / "model")
    assert not (tmp_path / "model" / "old.txt").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mail.txt").write_text("")
    with pytest.raises(SpecError, match="not a model's folder"):
        export(source, tmp_path / "letters")
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="is not a folder"):
        export(source, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "letters", "model"]


def test_a_failed_export_leaves_what_was_there(make_folder, tmp_path, monkeypatch):
    source = make_folder()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpq_llama.export.folder._write_shard", fail)
    with pytest.raises(Exception, match="No space left on device"):
        export(source, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_an_artifact_saved_by_transformers_is_refused(resaved, tmp_path):
    with pytest.raises(SourceError, match="dequantize"):
        export(resaved, tmp_path / "dense")


def test_matrices_of_experts_are_joined():
    from dpq_core.tensor.checkpoint import TensorInfo

    matrices = {f"experts.up.{i}": torch.full((2, 3), float(i)) for i in range(11)}
    infos = {name: TensorInfo((2, 3), torch.float32) for name in matrices}
    joined, read = _with_stacks(infos, matrices.__getitem__)
    assert joined == {"experts.up": TensorInfo((11, 2, 3), torch.float32)}
    assert torch.equal(read("experts.up")[:, 0, 0], torch.arange(11.0))


@pytest.mark.slow
def test_the_folder_loads_in_a_process_without_dpq(tied, tmp_path, ids):
    export(tied, tmp_path / "dense")
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0].startswith("dpq"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "dense")!r})
print(model(torch.tensor({ids.tolist()})).logits.double().sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(logits_of(tied, ids).double().sum().item(), rel=1e-3)
