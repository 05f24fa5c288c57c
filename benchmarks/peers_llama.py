"""Quantizers in use on ``builtin:tiny-llama``: perplexity by the code of ``dpq eval``, and bytes.

Each peer has a virtual environment of its own, outside the repository; torch comes first, so that
no peer pulls another build::

    python -m venv hqq && hqq/bin/pip install torch==2.13.0 && echo torch==2.13.0 > only.txt
    hqq/bin/pip install -c only.txt transformers==5.23.0 accelerate==1.15.0 numba psutil \\
        hqq==0.2.8.post1
    hqq/bin/python benchmarks/peers_llama.py hqq

and likewise ``quanto`` (optimum-quanto==0.2.7), ``autoround`` (auto-round==0.16.1) and
``gptqmodel`` (GPTQModel==7.6.0); numba and psutil are what dpq's own modules need. Every model is
written by the peer, loaded again by the peer and scored in float32, decoded to dense layers. Peers
that calibrate see the same training text.

Peers leave the embedding (14 % of tiny-llama, tied to the head) as it is, dpq does not. So that
bytes can be compared, each row also has the perplexity and the bytes with that matrix at 4 bits,
by a quantizer that is the same for all peers (``peers_common.round_embedding``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peers_common as common
import torch
from torch import Tensor

from dpq_llama.evaluation.evaluate import perplexity
from dpq_llama.source.checkpoint import BUILTIN

MODEL = BUILTIN / "tiny-llama"
CONTEXT = 512
UNCOMPRESSED = 19.733
"""What ``dpq eval builtin:tiny-llama`` says; another number here would mean another protocol."""

WINDOWS = 128
"""Calibration windows of CONTEXT tokens."""

CHECKED = 8
"""Windows on which the peer's own layers are compared with the decoded ones."""

LINEARS = 9_437_184
"""Weights in the linear layers of tiny-llama's blocks; 1,572,864 are in the embedding."""


@dataclass(frozen=True)
class Case:
    """One setting of a peer.

    Attributes:
        bits: nominal.
        group: weights that share a scale.
        options: of the peer alone.
    """

    bits: int
    group: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A rival.

    Attributes:
        packages: distributions whose versions matter.
        calibrated: whether it sees text.
        cases: what is tried.
        write: case, calibration ids or None, new folder.
        read: folder -> model, in whatever dtype the peer runs in on a CPU.
        sizes: folder -> name of each stored tensor and its bytes.
    """

    packages: tuple[str, ...]
    calibrated: bool
    cases: tuple[Case, ...]
    write: Callable[[Case, Tensor | None, Path], None]
    read: Callable[[Path], Any]
    sizes: Callable[[Path], dict[str, int]] = common.safetensors_bytes


def _dense(dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)


def _write_hqq(case: Case, ids: Tensor | None, out: Path) -> None:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model = _dense(torch.float16)
    config = BaseQuantizeConfig(nbits=case.bits, group_size=case.group, **case.options)
    AutoHQQHFModel.quantize_model(model, config, compute_dtype=torch.float16, device="cpu")
    AutoHQQHFModel.save_quantized(model, str(out))


def _read_hqq(folder: Path) -> Any:
    from hqq.models.hf.base import AutoHQQHFModel

    return AutoHQQHFModel.from_quantized(str(folder), compute_dtype=torch.float32, device="cpu")


def _sizes_hqq(folder: Path) -> dict[str, int]:
    from hqq.models.hf.base import AutoHQQHFModel

    weights = AutoHQQHFModel.load_weights(str(folder), "cpu")
    found = {name: common.nested_bytes(part) for name, part in weights.items()}
    shared = weights["lm_head"]["weight"].untyped_storage().data_ptr()
    if shared == weights["model.embed_tokens"]["weight"].untyped_storage().data_ptr():
        del found["lm_head"]  # one copy in the file
    return found


def _write_quanto(case: Case, ids: Tensor | None, out: Path) -> None:
    from optimum import quanto

    kinds = {8: quanto.qint8, 4: quanto.qint4, 2: quanto.qint2}
    optimizer = quanto.HqqOptimizer() if case.options.get("optimizer") == "hqq" else None
    quanto.QuantizedModelForCausalLM.quantize(
        _dense(torch.float16), weights=kinds[case.bits], optimizer=optimizer, exclude="lm_head"
    ).save_pretrained(out)


def _read_quanto(folder: Path) -> Any:
    from optimum import quanto

    return quanto.QuantizedModelForCausalLM.from_pretrained(folder)._wrapped


def _write_autoround(case: Case, ids: Tensor | None, out: Path) -> None:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    rounder = AutoRound(
        _dense(torch.float32),  # the embedding it then writes is float32 as well: 6.3 MB, not 3.1
        tokenizer=AutoTokenizer.from_pretrained(MODEL),
        bits=case.bits,
        group_size=case.group,
        dataset=[{"input_ids": row[None]} for row in ids],
        nsamples=len(ids),
        seqlen=CONTEXT,
        batch_size=2,  # of 512 tokens; the usual eight take most of an hour per setting on one core
        amp=False,  # bfloat16 is emulated on most processors
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


def _write_gptq(case: Case, ids: Tensor | None, out: Path) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=case.bits, group_size=case.group, device="cpu", **case.options)
    model = GPTQModel.load(str(MODEL), config)
    model.quantize([{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in ids])
    model.save(str(out))


def _read_gptq(folder: Path) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.bfloat16)
    return loaded.model


def _cases(bits: tuple[int, ...], groups: tuple[int, ...], **options: Any) -> tuple[Case, ...]:
    return tuple(Case(b, g, options) for b in bits for g in groups)


PEERS = {
    "hqq": Peer(
        ("hqq", "transformers"),
        False,
        (
            *_cases((4, 3, 2), (64,)),
            *_cases((2, 1), (32, 16)),
            *_cases((2,), (64, 16), axis=0),
            Case(1, 16, {"axis": 0}),
        ),
        _write_hqq,
        _read_hqq,
        _sizes_hqq,
    ),
    "quanto": Peer(
        ("optimum-quanto", "transformers"),
        False,
        (Case(4, 128), Case(2, 128), Case(4, 128, {"optimizer": "hqq"})),
        _write_quanto,
        _read_quanto,
    ),
    "autoround": Peer(
        ("auto-round", "transformers"),
        True,
        (
            Case(2, 32, {"iters": 200}),
            Case(4, 128, {"iters": 50}),  # what its authors call light; 200 gain little at 4 bits
            Case(3, 128, {"iters": 50}),
            Case(2, 128, {"iters": 200}),
        ),
        _write_autoround,
        _read_transformers,
    ),
    "gptqmodel": Peer(
        ("GPTQModel", "transformers"),
        True,
        (*_cases((4, 3, 2), (128,)), *_cases((2,), (32,)), *_cases((2,), (64, 32), sym=False)),
        _write_gptq,
        _read_gptq,
    ),
}


def score(model: Any, ids: Tensor) -> float:
    """Perplexity of the held-out text."""
    return perplexity.score(model, ids, CONTEXT).perplexity


def measure(peer: Peer, case: Case, ids: Tensor, calibration: Tensor | None) -> dict[str, Any]:
    """Write, read and score one case."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        started = time.perf_counter()
        peer.write(case, calibration, out)
        row: dict[str, Any] = {"seconds": time.perf_counter() - started}
        sizes = peer.sizes(out)
        files = common.file_bytes(out, (".safetensors", ".pt", ".bin"))
        linears = sum(v for k, v in sizes.items() if "layers." in k and "_proj" in k)
        ends = sum(v for k, v in sizes.items() if "embed_tokens" in k or "lm_head" in k)
        row |= {
            "weight_bytes": files,
            "folder_bytes": common.file_bytes(out),
            "linear_bytes": linears,
            "bits_per_linear_weight": 8 * linears / LINEARS,
            "embedding_bytes": ends,
        }
        model = peer.read(out).eval()
    ran = perplexity.score(model, ids, CONTEXT, limit=CHECKED).perplexity
    row["runtime_dtype"] = str(model.dtype).removeprefix("torch.")
    common.decode(model)
    again = perplexity.score(model, ids, CONTEXT, limit=CHECKED).perplexity
    row["decoded_against_runtime"] = again / ran - 1
    row["perplexity"] = score(model, ids)
    with common.embedding_at_4_bits(model) as nbytes:
        row["perplexity_embedding_4"] = score(model, ids)
    row["weight_bytes_embedding_4"] = files - ends + nbytes
    return row


def main() -> None:
    """Measure the cases of one peer and append a record of each."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", type=int, action="append", help="by number; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = PEERS[options.peer]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = perplexity.tokenize(tokenizer, perplexity.read_texts((MODEL / "heldout.txt",)))
    baseline = score(_dense(torch.float32), ids)
    assert round(baseline, 3) == UNCOMPRESSED, f"{baseline}: not the protocol of dpq eval"
    calibration = None
    if peer.calibrated:
        calibration = common.calibration_windows(tokenizer, WINDOWS, CONTEXT)
    spec = {
        "model": "builtin:tiny-llama",
        "peer": options.peer,
        "context": CONTEXT,
        "calibration_windows": WINDOWS if peer.calibrated else 0,
        "threads": options.threads,
    }
    for number, case in enumerate(peer.cases):
        if options.case and number not in options.case:
            continue
        torch.manual_seed(common.SEED)
        row = common.attempt(lambda c=case: measure(peer, c, ids, calibration))
        common.record(spec | asdict(case), {"uncompressed": baseline, **row}, peer.packages)


if __name__ == "__main__":
    main()
