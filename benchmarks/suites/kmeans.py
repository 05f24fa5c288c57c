"""k-means against faiss.ProductQuantizer.train: same data, same number of passes, both errors.

    python benchmarks/suites/kmeans.py

FAISS and dpq take turns in one process; medians are compared. FAISS trains with its defaults but
``niter`` (random points first, plain Lloyd). dpq is timed twice: plain Lloyd with as many
iterations (the like-for-like row), and SR-C with the same number of passes in total (the default of
the product). One untimed call comes first, so that compilation is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpq_core import kernels
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.spec import KMeansSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
import record  # benchmarks/record.py

K = 256
TARGETS = {2: 15.0, 4: 20.0, 8: 8.0}  # times faster than FAISS
MAX_WORSE = 0.005  # relative MSE over that of FAISS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d", type=int, nargs="+", default=[4, 2, 8], help="subvector lengths")
    parser.add_argument("--rows", type=int, default=6912)
    parser.add_argument("--cols", type=int, default=1152)
    parser.add_argument("--iterations", type=int, default=20, help="passes of every method")
    parser.add_argument("--repeat", type=int, default=3, help="timings of each; medians are shown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    matrix = torch.randn(args.rows, args.cols, generator=torch.Generator().manual_seed(args.seed))
    header = f"{'d':>2}  {'method':<12}{'seconds':>9}{'times':>8}{'rel. MSE':>11}{'vs FAISS':>10}"
    print(header)
    for d in args.d:
        values = compare(matrix, d, args.iterations, args.repeat, args.seed)
        show(d, values)
        if not args.no_record:
            spec = {"rows": args.rows, "cols": args.cols, "d": d, "K": K,
                    "passes": args.iterations, "repeat": args.repeat}  # fmt: skip
            record.append(
                "kmeans", spec=spec, seed=args.seed, results=values, packages=["faiss-cpu"]
            )


def compare(matrix: Tensor, d: int, passes: int, repeat: int, seed: int) -> dict[str, Any]:
    """Time all methods in turns: per method seconds (all and median) and relative MSE."""
    rows, cols = matrix.shape
    data = matrix.numpy()
    points = matrix.T.contiguous().view(cols // d, d, rows)
    plain = KMeansSpec(iterations=0, tail=passes)
    relaxed = KMeansSpec(iterations=passes - 2, tail=2)

    def ours(spec: KMeansSpec) -> Tensor:
        return kmeans(points, K=K, spec=spec, seed=seed).codebooks

    methods = {
        "faiss": lambda: train_faiss(data, d, passes, seed),
        "dpq lloyd": lambda: ours(plain),
        "dpq SR-C": lambda: ours(relaxed),
    }
    ours(KMeansSpec(iterations=1, tail=1))  # compiles or loads the cached kernels
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    errors: dict[str, float] = {}
    for _ in range(repeat):
        for name, method in methods.items():
            begin = time.perf_counter()
            codebooks = method()
            seconds[name].append(time.perf_counter() - begin)
            errors[name] = relative_error(points, codebooks)
    return {
        name: {
            "seconds": [round(s, 4) for s in seconds[name]],
            "median_seconds": round(statistics.median(seconds[name]), 4),
            "relative_mse": errors[name],
        }
        for name in methods
    } | {"torch_threads": torch.get_num_threads(), "faiss_threads": faiss_threads()}


def train_faiss(data: NDArray[np.float32], d: int, passes: int, seed: int) -> Tensor:
    """Codebooks float32 [cols / d, K, d] of faiss.ProductQuantizer."""
    import faiss

    quantizer = faiss.ProductQuantizer(data.shape[1], data.shape[1] // d, 8)
    quantizer.cp.niter = passes
    quantizer.cp.seed = seed + 1
    quantizer.cp.min_points_per_centroid = 1  # silences a warning, changes nothing else
    quantizer.train(data)
    return torch.from_numpy(faiss.vector_to_array(quantizer.centroids).reshape(-1, K, d).copy())


def faiss_threads() -> int:
    import faiss

    return int(faiss.omp_get_max_threads())


def relative_error(points: Tensor, codebooks: Tensor) -> float:
    """sum |x - nearest codeword|^2 / sum |x|^2, by the same assignment for every method."""
    distances = kernels.assign(points, codebooks)[1]
    return float(distances.double().sum() / points.double().square().sum())


def show(d: int, values: dict[str, Any]) -> None:
    faiss = values["faiss"]
    for name in ("faiss", "dpq lloyd", "dpq SR-C"):
        row = values[name]
        ratio = faiss["median_seconds"] / row["median_seconds"]
        worse = row["relative_mse"] / faiss["relative_mse"] - 1
        print(
            f"{d:>2}  {name:<12}{row['median_seconds']:>9.3f}{ratio:>7.1f}x"
            f"{row['relative_mse']:>11.6f}{worse:>+9.2%}"
        )
    ratio = faiss["median_seconds"] / values["dpq lloyd"]["median_seconds"]
    worse = values["dpq lloyd"]["relative_mse"] / faiss["relative_mse"] - 1
    if d in TARGETS:
        met = ratio >= TARGETS[d] and worse <= MAX_WORSE
        print(
            f"    target {TARGETS[d]:.0f}x, at most +{MAX_WORSE:.1%}: {'met' if met else 'MISSED'}"
        )


if __name__ == "__main__":
    main()
