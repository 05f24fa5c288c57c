"""`dpq compress` on a checkpoint in shards: bounded memory, and kill -9 in the middle."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli_runs import MAIN, dpq
from safetensors.torch import save_file

MEGABYTE = 10**6
BITS = ("--bits", "2", "--iterations", "4")


@pytest.fixture(scope="module")
def short_searches() -> None:
    """Searches are whole here: processes of their own know nothing of what is changed in this."""


def compress(source: Path, out: Path, *more: str) -> list[str]:
    words = ["compress", "-a", "llama", str(source), "-o", str(out)]
    return [*words, "--json", "--no-probe", "--no-data", *(more or BITS)]


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-P", "-c", MAIN, *compress(source, out, *more)]


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def write_llama(folder: Path, *, hidden: int, intermediate: int, layers: int, shards: int) -> int:
    """A Llama folder of random bfloat16 weights in shards; returns the bytes of its tensors."""
    from transformers import LlamaConfig

    folder.mkdir()
    vocabulary = 4096
    LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        for name in ("q", "k", "v", "o"):
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name, shape in (("gate", (intermediate, hidden)), ("up", (intermediate, hidden))):
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = shape
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (hidden, intermediate)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (hidden,)
    shapes["lm_head.weight"] = (vocabulary, hidden)
    noise = torch.randn(max(a[0] * (a[1] if len(a) > 1 else 1) for a in shapes.values()))
    noise = noise.bfloat16()
    names = list(shapes)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        tensors = {
            name: noise[: torch.Size(shapes[name]).numel()].reshape(shapes[name]).clone()
            for name in mine
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(mine, file))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return 2 * sum(torch.Size(shape).numel() for shape in shapes.values())


QUICK = ("--d", "8", "--K", "16", "--iterations", "1")
"""Half a bit, little work."""


def permuted_twice(layers: int) -> list[str]:
    """Options for permutations in two layers only: searching them is most of the work."""
    others = ["[2-9]", "??"] if layers > 10 else ["[2-9]"]
    return [f"--override=model.layers.{some}.*=permute=false" for some in others]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Ten times the layers, 400 MB more: no more memory than a tenth of that."""
    sizes, stored, peaks = [], [], []
    for layers in (3, 30):
        source, out = tmp_path / f"source{layers}", tmp_path / f"out{layers}"
        size = write_llama(source, hidden=768, intermediate=2048, layers=layers, shards=4)
        words = command(source, out, *QUICK, *permuted_twice(layers))
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        report = json.loads(done.stdout)
        sizes.append(size)
        stored.append(report["nbytes"])
        peaks.append(report["peak_memory"])
        shutil.rmtree(source)
    assert sizes[1] - sizes[0] > 380 * MEGABYTE
    assert stored[1] - stored[0] < (sizes[1] - sizes[0]) / 20  # of the layers: all but half a bit
    assert peaks[1] - peaks[0] < 40 * MEGABYTE
    assert max(peaks) < 700 * MEGABYTE


@pytest.mark.slow
def test_a_killed_compression_resumes_to_the_same_bytes(tmp_path):
    source = tmp_path / "source"
    write_llama(source, hidden=512, intermediate=1376, layers=4, shards=3)
    assert dpq(*compress(source, tmp_path / "whole")).code == 0

    out, partial = tmp_path / "out", tmp_path / "out.partial"
    process = subprocess.Popen(
        command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = partial / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 5):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline, "never began to write"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert partial.is_dir()
    assert not out.exists()

    half = dpq("inspect", out)
    assert half.code == 1
    assert "half-written" in half.err
    again = dpq(*compress(source, out))
    assert again.code == 1
    assert "--resume" in again.err

    done = dpq(*compress(source, out, *BITS, "--resume"))
    assert done.code == 0, done.err
    resumed = [tensor["resumed"] for tensor in done.json["tensors"]]
    assert sum(resumed) >= 5
    assert not all(resumed)
    assert not partial.exists()
    assert hashes(out) == hashes(tmp_path / "whole")
