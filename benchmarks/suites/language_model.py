"""What `dpq compress` makes of a language model: bytes, perplexity, KL, top-1, seconds, memory.

    python benchmarks/suites/language_model.py /folder/of/a/model --texts test.txt \
        --context 1024 --run "--bits 2" --run "--target-size 54MB"

Each run is a process of its own, so that its peak memory can be read. The artifact must pass
`dpq inspect --verify` before anything is recorded; each run appends one line. Text to measure on
should be of another source than the text to calibrate on (by default the one that ships). The
tables of docs/peers.md and README.md, which show the records, are written again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dpq

sys.path.insert(0, str(Path(__file__).parents[1]))
import peers_tables  # benchmarks/peers_tables.py
import record  # benchmarks/record.py


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="builtin:tiny-llama", help="what is compressed")
    parser.add_argument("--texts", help="text to measure on  [default: the built-in model's]")
    parser.add_argument("--context", type=int, default=0, help="tokens of a window")
    parser.add_argument("--limit", type=int, default=24, help="windows; 0: the whole text")
    parser.add_argument("--run", action="append", help="options of dpq compress  [--bits 2]")
    parser.add_argument("--folder", type=Path, help="where to work  [default: a temporary folder]")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    measured: dict[str, Any] = {"context": args.context, "limit": args.limit}
    if args.texts is not None:
        measured["texts"] = args.texts
    for options in args.run or ["--bits 2"]:
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            out = Path(temporary) / "out"
            values = compress(args.model, options, out)
            verified = dpq.verify(out)  # raises where it fails: nothing is recorded then
            values["bytes"] = verified.artifact.nbytes
            values |= quality(args.model, out, measured)
        print(options, values, flush=True)
        if not args.no_record:
            texts = None if args.texts is None else Path(args.texts).name
            spec = {"model": Path(args.model).name, "options": options, **measured, "texts": texts}
            record.append("language_model", spec=spec, seed=0, results=values)
            peers_tables.write()


def compress(model: str, options: str, out: Path) -> dict[str, Any]:
    """Run `dpq compress`; returns its seconds, peak memory and the load before it."""
    command = [sys.executable, "-m", "dpq_cli", "compress", model, "-o", str(out)]
    load, started = os.getloadavg()[0], time.perf_counter()
    process = subprocess.Popen([*command, *shlex.split(options)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{options}: dpq compress failed")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
        "load_average_before": round(load, 2),
    }


def quality(model: str, out: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """The metrics of `dpq eval --baseline`."""
    result = dpq.evaluate(out, baseline=model, **measured).result.evaluation
    return {metric.name: round(metric.value, 5) for metric in result.metrics}


if __name__ == "__main__":
    main()
