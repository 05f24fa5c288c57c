"""A LLaMA-2-7B at true shapes: time and memory of compressing it, interrupted once on the way.

    python benchmarks/suites/llama_7b.py --folder /where/there/is/room

The checkpoint is random (zoo/random_llama.py), 13.5 GB in shards. ``dpq compress --no-data`` is
stopped by Ctrl-C after a third of its predicted time, and continued with ``--resume`` in a new
process; the result is checked by ``dpq inspect --verify``. Targets at 2 bits: 45 minutes, 3 GB.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import record  # benchmarks/record.py
from zoo import random_llama  # benchmarks/zoo/random_llama.py

DPQ = Path(sys.executable).with_name("dpq")


def main() -> None:
    """Write the model, compress it in two runs, verify, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--interrupt", type=float, default=120.0, help="seconds until Ctrl-C")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work  [default: a temporary folder]")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        source = Path(temporary) / "llama"
        random_llama.write(source, args.layers, args.seed)
        values = measure(source, Path(temporary) / "out", args.bits, args.interrupt)
    print(json.dumps(values), flush=True)
    if not args.no_record:
        spec = {
            "model": "LLaMA-2-7B",
            "layers": args.layers,
            "bits": args.bits,
            "preset": "standard",
            "data": False,
        }
        record.append("llama_7b", spec=spec, seed=args.seed, results=values)


def measure(source: Path, out: Path, bits: int, interrupt: float) -> dict[str, Any]:
    """Compress with an interruption, and check what came of it."""
    words = ["compress", source, "-a", "llama", "-o", out, "--bits", bits, "--no-data"]
    command = [DPQ, *map(str, words), "--json"]
    started = time.perf_counter()
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(interrupt)
    first.send_signal(signal.SIGINT)
    message = first.communicate()[1].strip()
    assert first.returncode == 130, message
    before = time.perf_counter() - started
    second = subprocess.run([*command, "--resume"], check=True, stdout=subprocess.PIPE)
    total = time.perf_counter() - started
    report = json.loads(second.stdout)
    resumed = sum(tensor["resumed"] for tensor in report["tensors"])
    assert resumed > 0, "the interruption came before the first tensor was finished"
    verified = subprocess.run(
        [DPQ, "inspect", str(out), "--verify", "--json"], check=True, stdout=subprocess.PIPE
    )
    return {
        "compress_seconds": total,
        "seconds_before_interrupt": before,
        "tensors_kept_by_resume": resumed,
        "compress_peak_bytes": report["peak_memory"],
        "source_nbytes": report["source_nbytes"],
        "nbytes": report["nbytes"],
        "bits_per_weight": report["bits_per_weight"],
        "weights": report["weights"],
        "verified": json.loads(verified.stdout)["verified"],
    }


if __name__ == "__main__":
    main()
