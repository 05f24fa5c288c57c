"""A DiT-XL/2 at true shapes: time, memory and bytes of compressing it, and time of a step with it.

    python benchmarks/suites/dit_xl.py

The checkpoint is random (zoo/random_dit.py): quality is measured elsewhere. Every width is
compressed by ``dpq compress`` in a process of its own, which reports its time and highest resident
memory, and checked by ``dpq inspect --verify``. Then the model is loaded through diffusers and one
denoising step (batch 4, bfloat16, classes, 256 tokens) takes turns with the dense model, after its
output was compared with that of the decoded weights in dense layers. Targets: 2 bits in under 6
minutes and 1.5 GB; a step within 1.25 times the dense one, weights under 0.2 times float16's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import record  # benchmarks/record.py
from zoo import random_dit  # benchmarks/zoo/random_dit.py

BATCH, STEP, CLASSES = 4, 500, (1, 207, 360, 999)
MAX_ERROR = 2e-3
"""Relative error of a step against the same artifact decoded to dense layers: rounding only."""


def main() -> None:
    """Run what the command line asks for; append one record per width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2, 1])
    parser.add_argument("--preset", default="standard", help="standard or paper")
    parser.add_argument("--repeat", type=int, default=5, help="steps of each; medians are shown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work  [default: a temporary folder]")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        source = Path(temporary) / "dit-xl"
        random_dit.write(source, torch.float16, args.seed)
        for bits in args.bits:
            out = Path(temporary) / f"{bits}-bit"
            values = measure(source, out, (args.preset, bits), args.repeat)
            print(json.dumps(values), flush=True)
            if not args.no_record:
                spec = {"model": "DiT-XL/2-256", "bits": bits, "batch": BATCH, "dtype": "bfloat16"}
                spec["preset"] = args.preset
                record.append(
                    "dit_xl", spec=spec, seed=args.seed, results=values, packages=["diffusers"]
                )


def measure(source: Path, out: Path, how: tuple[str, int], repeat: int) -> dict[str, Any]:
    """Compress (preset and bits), verify, load, and time one step."""
    preset, bits = how
    words = ["compress", source, "-a", "diffusion", "-o", out]
    report = dpq(*words, "--preset", preset, "--bits", bits)
    verified = dpq("inspect", out, "--verify")["verified"]
    dense, compressed = load(source), load(out)
    error = relative_error(step(decoded(out)), step(compressed))
    assert error < MAX_ERROR, f"{bits} bits: off by {error} from the decoded model"
    seconds = times(dense, compressed, repeat)
    float16 = 2 * sum(p.numel() for p in unique(dense))
    return {
        "compress_seconds": report["seconds"],
        "compress_peak_bytes": report["peak_memory"],
        "nbytes": report["nbytes"],
        "bits_per_weight": report["bits_per_weight"],
        "weights": report["weights"],
        "verified": verified,
        "runtime_relative_error": error,
        "step_dense_seconds": seconds[0],
        "step_seconds": seconds[1],
        "step_ratio": seconds[1] / seconds[0],
        "weight_bytes": sum(t.numel() * t.element_size() for t in unique(compressed)),
        "weight_ratio": sum(t.numel() * t.element_size() for t in unique(compressed)) / float16,
    }


def dpq(*words: object) -> dict[str, Any]:
    """One command of the CLI with ``--json``, in a process of its own."""
    command = [Path(sys.executable).with_name("dpq"), *map(str, words), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def load(folder: Path) -> nn.Module:
    """The transformer in bfloat16, dense or compressed."""
    from diffusers import DiTTransformer2DModel

    import dpq_diffusion  # noqa: F401  (teaches diffusers to load artifacts)

    return DiTTransformer2DModel.from_pretrained(folder, dtype=torch.bfloat16).eval()


def decoded(folder: Path) -> nn.Module:
    """The artifact's transformer with dense layers of the decoded weights."""
    from dpq_core.runtime.swap import swap_out

    model = load(folder)
    swap_out(model, torch.bfloat16)
    return model


def unique(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, those that modules share once."""
    tensors = [*model.parameters(), *model.buffers()]
    return list({tensor.data_ptr(): tensor for tensor in tensors}.values())


@torch.inference_mode()
def step(model: nn.Module) -> torch.Tensor:
    """What the model predicts for one noisy batch."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 4, 32, 32, generator=noise).bfloat16()
    labels = torch.tensor(CLASSES)
    return model(x, timestep=torch.full((BATCH,), STEP), class_labels=labels).sample.float()


def relative_error(expected: torch.Tensor, found: torch.Tensor) -> float:
    """||a - b||^2 / ||a||^2."""
    return float((expected - found).square().sum() / expected.square().sum())


def times(dense: nn.Module, compressed: nn.Module, repeat: int) -> tuple[float, float]:
    """Median seconds of one step of each, taking turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for model, found in zip((dense, compressed), seconds, strict=True):
            started = time.perf_counter()
            step(model)
            found.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
