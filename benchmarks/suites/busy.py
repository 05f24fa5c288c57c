"""How much a busy machine slows `dpq compress`: alone and beside busy processes, in turns.

    python benchmarks/suites/busy.py [--model /folder/of/a/model]

Every run is a process of its own, so that its CPU time can be read: threads that spin while they
wait show there, whatever else the machine does. One untimed run comes first, so that compilation is
not measured; all artifacts must be the same, byte for byte. Target on two cores: beside one busy
process at most 2.3 times the time alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import record  # benchmarks/record.py

TARGET = 2.3  # times the time alone, beside one busy process on two cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:tiny-llama", help="what is compressed")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--peers", type=int, default=1, help="busy processes")
    parser.add_argument("--repeat", type=int, default=3, help="runs alone, and as many beside them")
    parser.add_argument("--folder", type=Path, help="where to work  [default: a temporary folder]")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        values = measure(args.model, args.bits, args.peers, args.repeat, Path(temporary) / "out")
    show(values, args.peers)
    if not args.no_record:
        spec = {"model": Path(args.model).name, "bits": args.bits, "data": False}
        spec |= {"peers": args.peers, "repeat": args.repeat}
        record.append("busy", spec=spec, seed=0, results=values)


def measure(model: str, bits: int, peers: int, repeat: int, out: Path) -> dict[str, Any]:
    """Seconds and CPU seconds of every run, medians, and the median slowdown of neighbours."""
    _, _, expected = compress(model, bits, out)
    runs: dict[str, list[tuple[float, float]]] = {"alone": [], "busy": []}
    loads = []
    for _ in range(repeat):
        for name, count in (("alone", 0), ("busy", peers)):
            loads.append(round(os.getloadavg()[0], 2))
            with busy(count):
                seconds, cpu_seconds, digest = compress(model, bits, out)
            if digest != expected:
                raise SystemExit("the artifacts of two runs differ: nothing is recorded")
            runs[name].append((seconds, cpu_seconds))
    pairs = zip(runs["alone"], runs["busy"], strict=True)
    return {
        name: {
            "seconds": [round(seconds, 2) for seconds, _ in values],
            "median_seconds": round(statistics.median(s for s, _ in values), 2),
            "cpu_seconds": [round(cpu, 2) for _, cpu in values],
            "median_cpu_seconds": round(statistics.median(c for _, c in values), 2),
        }
        for name, values in runs.items()
    } | {
        "slowdown": round(statistics.median(b[0] / a[0] for a, b in pairs), 3),
        "artifacts": "identical",
        "load_average_before_runs": loads,
    }


def compress(model: str, bits: int, out: Path) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds (user and system) and a hash of every file of the artifact."""
    command = [sys.executable, "-m", "dpq_cli", "compress", model, "-o", str(out)]
    options = ["--bits", str(bits), "--no-data", "--overwrite"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    digest = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(out)}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return seconds, cpu_seconds, digest.hexdigest()


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Context with so many processes that always want a processor."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        # They must not be waited for before: their CPU time would count as that of children.
        for process in processes:
            process.kill()
            process.wait()


def show(values: dict[str, Any], peers: int) -> None:
    print(f"{'':<8}{'seconds':>10}{'CPU seconds':>14}")
    for name in ("alone", "busy"):
        row = values[name]
        print(f"{name:<8}{row['median_seconds']:>10.1f}{row['median_cpu_seconds']:>14.1f}")
    print(f"slowdown {values['slowdown']:.2f}, load before {values['load_average_before_runs']}")
    if peers == 1 and record.machine()["cores"] == 2:
        print(f"target {TARGET} times: {'met' if values['slowdown'] <= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
