"""dpq itself at the sizes of its peers, in their records: ``dpq.compress`` and ``dpq.evaluate``.

    python benchmarks/peers_dpq.py --model tiny-llama --preset best

A preset is given the bytes of the peers' files (``--target-size``; all files of the artifact
counted) and of its own nominal widths, and scored by the protocol of ``peers_llama.py`` and
``peers_diffusion.py``. ``best`` sees the training text that calibrated peers see; on the DiT, what
the uncompressed model draws. ``benchmarks/peers_tables.py`` writes the tables of docs/peers.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers_common as common

import dpq

PRESETS = ("standard", "best")
CONTEXT, WINDOWS = 512, 128
IMAGES, STEPS, GUIDANCE = 50, 25, 1.5


@dataclass(frozen=True)
class Model:
    """A built-in model.

    Attributes:
        sizes: bytes that the artifact may take: those of peers, and what 1 to 4 bits take.
        protocol: options of ``dpq.evaluate``, beyond the defaults.
        metric: what is told, by the name that ``dpq.evaluate`` gives it -> key of the record.
        spec: of the peers' records of this model.
    """

    sizes: tuple[int, ...]
    protocol: dict[str, Any]
    metric: tuple[str, str]
    spec: dict[str, Any]


MODELS = {
    "tiny-llama": Model(
        (2_555_000, 3_518_000, 3_880_000, 4_630_000, 5_303_000, 5_820_000, 6_242_000),
        {"context": CONTEXT, "dtype": "float32"},
        ("perplexity", "perplexity"),
        {"context": CONTEXT},
    ),
    "tiny-dit": Model(
        (1_171_000, 1_996_000, 2_830_000, 3_331_000, 3_650_000, 6_263_000),
        {
            "sampling_steps": STEPS,
            "guidance": GUIDANCE,
            "count": IMAGES,
            "baseline_count": IMAGES,
        },
        ("PSNR", "psnr_dB"),
        {"images": IMAGES, "steps": STEPS, "guidance": GUIDANCE, "batch": IMAGES},
    ),
}


def texts(model: str, folder: Path) -> dict[str, Any]:
    """The argument that names the training text, written as files."""
    if model != "tiny-llama":
        return {}
    for name, text in common.calibration_documents(WINDOWS * CONTEXT):
        (folder / f"{name.replace('/', '_')}.txt").write_text(text, encoding="utf-8")
    return {"data": dpq.data.texts(folder)}


def measure(name: str, how: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One artifact: its bytes, its metric, and the seconds that it took."""
    model, out = MODELS[name], folder / "artifact"
    started = time.perf_counter()
    dpq.compress(f"builtin:{name}", out, probe=False, **how)
    seconds = time.perf_counter() - started
    metrics = dpq.evaluate(out, **model.protocol).result.evaluation.metrics
    metric, key = model.metric
    (value,) = [one.value for one in metrics if one.name.startswith(metric)]
    return {"seconds": seconds, "weight_bytes": common.file_bytes(out), key: value}


def main() -> None:
    """Measure and append a record of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--preset", action="append", choices=PRESETS)
    parser.add_argument("--size", action="append", type=int, help="bytes")
    parser.add_argument("--steps", type=int, help="of the calibration, instead of the preset's")
    options = parser.parse_args()
    for name in options.model or MODELS:
        model = MODELS[name]
        for preset in options.preset or PRESETS:
            for size in options.size or model.sizes:
                with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as text:
                    how: dict[str, Any] = {"preset": preset, "target_size": size}
                    if preset == "best":
                        how |= texts(name, Path(text))
                    if options.steps is not None:
                        how["steps"] = options.steps
                    row = measure(name, how, Path(made))
                spec = {"model": f"builtin:{name}", "peer": "dpq", **model.spec}
                spec |= {"preset": preset, "target_size": size}
                if options.steps is not None:
                    spec["calibration_steps"] = options.steps
                common.record(spec, row, ("transformers", "diffusers"))


if __name__ == "__main__":
    main()
