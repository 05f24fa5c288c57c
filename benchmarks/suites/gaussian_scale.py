"""Time and memory of coding large splat scenes: synthetic, clustered on surfaces, SH 3.

    python benchmarks/suites/gaussian_scale.py --millions 1 6 --threads 2

Each scene is written to a .ply, compressed, decoded chunk by chunk and decoded whole, every step in
a process of its own, so that its peak memory is its own. What is decoded is checked against the
source before any time is reported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLUSTER = 4096
"""Gaussians of one patch of a surface."""

SH = 15
NAMES = (
    ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
    + [f"f_rest_{i}" for i in range(3 * SH)]
    + ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
)


def patch(generator: np.random.Generator, side: float) -> np.ndarray:
    """Gaussians on one bent patch with a colour of its own: float32 ``[CLUSTER, 62]``."""
    n = CLUSTER
    rows = np.zeros((n, len(NAMES)), np.float32)
    middle = generator.uniform(-1, 1, 3) * side
    basis = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    size = np.exp(generator.normal(-1.5, 0.6))
    flat = generator.normal(size=(n, 2)) * size
    bend = 0.3 * (flat**2).sum(1, keepdims=True) + generator.normal(size=(n, 1)) * 0.01 * size
    rows[:, :3] = middle + np.concatenate([flat, bend], 1) @ basis.T
    rows[:, 6:9] = generator.normal(0, 1, 3) + 0.3 * generator.normal(size=(n, 3))
    luma = generator.normal(size=(n, 1, SH)) * 0.06 * np.linspace(1.2, 0.5, SH)
    chroma = generator.normal(size=(n, 3, SH)) * 0.02
    rows[:, 9 : 9 + 3 * SH] = (luma + chroma).reshape(n, -1)
    rows[:, 54] = generator.normal(0, 2.2, n)
    spacing = np.log(size / np.sqrt(n) * 2)
    rows[:, 55:58] = spacing + generator.normal(size=(n, 3)) * [0.6, 0.6, 0.8] - [0, 0, 1.2]
    rows[:, 58:62] = generator.normal(size=(n, 4))
    return rows


def write_scene(path: Path, count: int, seed: int) -> None:
    """An Inria .ply of ``count`` synthetic Gaussians."""
    generator = np.random.default_rng(seed)
    side = (count / 1e5) ** (1 / 3)
    with path.open("wb") as file:
        head = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
        head += [f"property float {name}" for name in NAMES] + ["end_header", ""]
        file.write("\n".join(head).encode())
        left = count
        while left > 0:
            file.write(patch(generator, side)[:left].tobytes())
            left -= CLUSTER


def child(step: str, scene: Path, out: Path, threads: int) -> dict:
    """Run one step in a new process; its measurements."""
    command = [sys.executable, __file__, "--child", step, str(scene), str(out), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{step} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_child(step: str, scene: str, out: str, threads: int) -> None:
    """One step of a benchmark; prints its measurements as JSON."""
    import torch

    from dpq_core.jobs.compress import peak_memory

    torch.set_num_threads(threads)
    from dpq_core.jobs.compress_file import compress_file
    from dpq_gaussian.adapter import GaussianAdapter
    from dpq_gaussian.codec import SceneFile, decode_scene

    result: dict = {}
    if step == "encode":
        report = compress_file(GaussianAdapter(), scene, Path(out), overwrite=True)
        result = {"seconds": report.seconds, "nbytes": report.nbytes}
        result["errors"] = {a.name: dict(a.errors) for a in report.manifest.attributes}
    elif step == "chunks":
        SceneFile(out).chunk(0)  # compiles
        started = time.perf_counter()
        result = {"items": sum(len(chunk) for chunk in SceneFile(out))}
        result["seconds"] = time.perf_counter() - started
    else:
        SceneFile(out).chunk(0)
        started = time.perf_counter()
        whole = decode_scene(out)
        result = {"items": len(whole), "seconds": time.perf_counter() - started}
        last = SceneFile(out).chunk(SceneFile(out).chunks - 1)
        for name, array in last.arrays().items():
            assert np.array_equal(whole.arrays()[name][-len(last) :], array), name
    print(json.dumps({**result, "peak_memory": peak_memory()}))


def measure(count: int, threads: int, seed: int, folder: Path) -> dict:
    """All steps for one scene."""
    scene, out = folder / f"{count}.ply", folder / f"{count}.dpq"
    write_scene(scene, count, seed)
    encoded = child("encode", scene, out, threads)
    chunks, whole = (child(step, scene, out, threads) for step in ("chunks", "whole"))
    assert chunks["items"] == whole["items"] > 0.5 * count
    assert encoded["errors"]["positions"]["rms"] < 0.05, encoded["errors"]
    assert encoded["errors"]["color"]["rms"] < 0.5, encoded["errors"]
    scene.unlink()
    row = {
        "gaussians": count,
        "encode_seconds": round(encoded["seconds"], 2),
        "encode_peak_MB": encoded["peak_memory"] // 10**6,
        "bytes_per_gaussian": round(encoded["nbytes"] / count, 3),
        "decode_chunks_per_second": round(chunks["items"] / chunks["seconds"]),
        "decode_chunks_peak_MB": chunks["peak_memory"] // 10**6,
        "decode_per_second": round(whole["items"] / whole["seconds"]),
        "decode_peak_MB": whole["peak_memory"] // 10**6,
    }
    print(json.dumps(row))
    return row


def main() -> None:
    """Measure every size, append one record."""
    from record import append

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[1.0, 6.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="for the scenes (1.5 GB for 6 M)")
    parser.add_argument("--dry-run", action="store_true", help="append no record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = [
            measure(round(1e6 * m), options.threads, options.seed, Path(folder))
            for m in options.millions
        ]
    if not options.dry_run:
        spec = {"threads": options.threads, "preset": "balanced"}
        append("gaussian_scale", seed=options.seed, spec=spec, results=rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
