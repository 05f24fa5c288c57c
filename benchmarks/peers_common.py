"""What the peers' scripts share: protocol, calibration text, bytes, records.

It runs inside a peer's own virtual environment, where dpq is not installed: importing this module
puts the checkout on the path, and only modules of dpq are used that need nothing but torch,
transformers and diffusers. So peers are measured by the code of ``dpq eval`` and not by a copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when torch and the peers are imported. Models this small are done before they are compiled.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it insists on two, also on a machine of two

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[1]
for _folder in ("benchmarks", "benchmarks/zoo", "adapters", "."):
    sys.path.insert(0, str(ROOT / _folder))

RECORD = "peers"
"""Every peer of every domain appends to ``benchmarks/results/peers.jsonl``."""

SEED = 0

SHIPPED = ROOT / "adapters/dpq_llama/calibration/text/mixed.txt.gz"
"""The calibration text that ships with dpq."""

DOCUMENT = 4_000
"""Characters taken of one document: some files are a hundred times longer than others."""


def calibration_documents(tokens: int) -> list[tuple[str, str]]:
    """Names and first lines of training documents of tiny-llama, ``tokens`` and a few more long.

    A seeded draw from the training split (``zoo/stdlib_corpus.py``), never from the held-out text,
    so whoever calibrates on tiny-llama can use the same: ``python benchmarks/peers_common.py OUT``.
    """
    from stdlib_corpus import load_corpus

    train = load_corpus().train
    names = sorted(train)
    random.Random(SEED).shuffle(names)
    chosen, characters = [], 0
    for name in names:
        if characters >= 4.2 * tokens:  # this tokenizer makes a token of 3.4 characters of code
            break
        text = train[name][:DOCUMENT].rpartition("\n")[0] + "\n"
        chosen.append((name, text))
        characters += len(text)
    return chosen


def calibration_windows(tokenizer: PreTrainedTokenizerBase, count: int, length: int) -> Tensor:
    """Token ids int64 ``[count, length]`` of :func:`calibration_documents`.

    Raises:
        ValueError: the documents are too short.
    """
    ids: list[int] = []
    for _, text in calibration_documents(count * length):
        ids += tokenizer(text, verbose=False)["input_ids"]
        ids.append(tokenizer.eos_token_id)
    if len(ids) < count * length:
        raise ValueError(f"calibration documents give {len(ids)} tokens of {count * length}")
    return torch.tensor(ids[: count * length]).view(count, length)


def shipped_windows(tokenizer: PreTrainedTokenizerBase, count: int, length: int) -> Tensor:
    """Token ids int64 ``[count, length]`` of the calibration text that ships with dpq.

    Raises:
        ValueError: the text is too short.
    """
    from dpq_llama.source.texts import read_text

    ids = tokenizer(read_text(SHIPPED), verbose=False)["input_ids"]
    if len(ids) < count * length:
        raise ValueError(f"the text gives {len(ids)} tokens of {count * length}")
    return torch.tensor(ids[: count * length]).view(count, length)


def round_embedding(weight: Tensor, bits: int) -> tuple[Tensor, int]:
    """The matrix ``[vocabulary, hidden]`` rounded to some bits, float32, and the bytes it takes.

    Groups of 64 with float16 scale and minimum, the range of each shrunk as far as lowers its
    squared error.
    """
    parts, levels = weight.float().view(-1, 64), 2**bits - 1
    low, high = parts.amin(1, keepdim=True), parts.amax(1, keepdim=True)
    best, least = parts, torch.full_like(low, torch.inf)
    for shrink in torch.linspace(1, 0.6, 41).tolist():
        floor = (shrink * low).half().float()
        scale = (shrink * (high - low) / levels).half().float().clamp_min(1e-7)
        tried = ((parts - floor) / scale).round().clamp(0, levels) * scale + floor
        error = (tried - parts).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best.view_as(weight), weight.numel() * bits // 8 + 4 * len(parts)


@contextlib.contextmanager
def rounded_embedding(model: Any, bits: int) -> Iterator[int]:
    """The model with its embedding and tied head rounded; yields their bytes."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    kept = [end.weight.data for end in ends]
    rounded, nbytes = round_embedding(kept[0].float(), bits)
    for end in ends:
        end.weight.data = rounded.to(kept[0].dtype)
    yield nbytes
    for end, data in zip(ends, kept, strict=True):
        end.weight.data = data


@torch.no_grad()
def decode(model: Any) -> None:
    """Put dense float32 layers in place of a peer's linear ones, with the weights they act by.

    Some peers run in one dtype only; a unit vector per column gives the weights of all of them,
    as every product but one in each sum is zero.
    """
    for name, module in list(model.named_modules()):
        columns = getattr(module, "in_features", None) or getattr(module, "infeatures", None)
        if columns is None or type(module) is torch.nn.Linear:
            continue
        bias, module.bias = module.bias, None
        stored = getattr(module, "weight", None)  # in a layout of the peer's own, often integers
        real = isinstance(stored, Tensor) and stored.is_floating_point()
        weight = module(torch.eye(columns, dtype=stored.dtype if real else model.dtype)).T
        dense = torch.nn.Linear(*weight.T.shape, bias=bias is not None, device="meta")
        dense.weight = torch.nn.Parameter(weight.float().contiguous())
        if bias is not None:
            dense.bias = torch.nn.Parameter(bias.float())
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, dense)
    torch.nn.Module.float(model)  # the method of a quantized model refuses


def safetensors_bytes(folder: Path) -> dict[str, int]:
    """Tensor name -> bytes, from the headers of the ``.safetensors`` files of a folder."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        for name, info in header.items():
            first, last = info["data_offsets"]
            found[name] = last - first
    return found


def distinct_bytes(folder: Path) -> int:
    """Bytes of the tensors in the ``.safetensors`` files of a folder, equal ones counted once."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        for info in header.values():
            first, last = info["data_offsets"]
            part = content[start + first : start + last]
            found[hashlib.sha256(part).digest()] = len(part)
    return sum(found.values())


def nested_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(nested_bytes, value.values())) if isinstance(value, Mapping) else 0


def file_bytes(folder: Path, suffixes: Iterable[str] | None = None) -> int:
    """Bytes of the files of a folder, of all or of those with these suffixes."""
    wanted = None if suffixes is None else set(suffixes)
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(p.stat().st_size for p in files if wanted is None or p.suffix in wanted)


class Stopwatch:
    """Seconds by the clock and seconds of processors since it was made, of ended children too."""

    def __init__(self) -> None:
        self.started = self._now()

    def read(self) -> dict[str, float]:
        """The seconds so far, as they stand in a record."""
        names = "seconds", "cpu_seconds"
        return {n: b - a for n, a, b in zip(names, self.started, self._now(), strict=True)}

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), sum(os.times()[:4])


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of ``run``, or one that says how it failed: a peer that breaks is a result too."""
    try:
        return run()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        return {"failed": f"{type(error).__name__}: {reason}"}


def log(row: Mapping[str, Any]) -> None:
    """Print one row as a line."""
    parts = (f"{k} {v:,.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    print("; ".join(parts), flush=True)


def record(spec: Mapping[str, Any], row: Mapping[str, Any], packages: Sequence[str]) -> None:
    """Print one case and append it to the records at once: some peers take an hour for all."""
    from record import append

    log({**spec, **row})
    append(RECORD, seed=SEED, spec=dict(spec), results=dict(row), packages=packages)


def main() -> None:
    """Write the calibration text of tiny-llama, documents joined by blank lines."""
    out = Path(sys.argv[1])
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 131_072
    chosen = calibration_documents(tokens)
    out.write_text("\n\n".join(text for _, text in chosen), encoding="utf-8")
    print(f"{len(chosen)} documents, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
