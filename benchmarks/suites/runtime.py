"""Time of one PQLinear against dense layers: look-up table, decode-then-GEMM, and what is chosen.

    python benchmarks/suites/runtime.py --threads 2

Every case is checked against the plain reference before it is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from record import append

from dpq_core.runtime import PQLinear, PQWeight, reference
from dpq_core.runtime.linear import tabulated_product
from dpq_core.spec import QuantSpec
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import PQTensor

SHAPES = ((4096, 4096), (11_008, 4096), (1024, 384))
TOKENS = (1, 4, 16, 128)


def random_layer(shape: tuple[int, int], spec: QuantSpec) -> tuple[PQTensor, PQLinear]:
    """A layer with random codes and codebooks."""
    p = Partition.of(shape, Layout.LINEAR, spec)
    pq = PQTensor(
        partition=p,
        dtype=torch.float32,
        codes=pack(torch.randint(p.K, (p.groups, p.points)), p.code_bits),
        codebooks=torch.randn(p.codebooks, p.K, p.d).half(),
        row_scale=torch.rand(p.rows).half(),
    )
    return pq, PQLinear(PQWeight.from_pq(pq))


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of ``run`` in milliseconds, after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


@torch.no_grad()
def measure(shape: tuple[int, int], bits: int, dtype: torch.dtype, repeats: int) -> list[dict]:
    """One row per number of tokens."""
    pq, layer = random_layer(shape, QuantSpec.preset(bits))
    dense = torch.nn.Linear(shape[1], shape[0], bias=False).to(dtype)
    rows = []
    for count in TOKENS:
        x = torch.randn(count, shape[1]).to(dtype)
        expected = reference.linear(x.float(), pq)
        tolerance = 1e-3 if dtype is torch.float32 else 3e-2
        for output in (layer(x), layer._decoded(x), tabulated_product(x, layer.weight)):
            worst = (output.float() - expected).abs().max() / expected.abs().max()
            assert worst < tolerance, f"{shape} {bits} bits {count} tokens: off by {worst}"
        rows.append(
            {
                "shape": list(shape),
                "bits": bits,
                "dtype": str(dtype).removeprefix("torch."),
                "tokens": count,
                "dense_ms": median_ms(lambda x=x: dense(x), repeats),
                "pq_ms": median_ms(lambda x=x: layer(x), repeats),
                "table_ms": median_ms(lambda x=x: tabulated_product(x, layer.weight), repeats),
                "decode_ms": median_ms(lambda x=x: layer._decoded(x), repeats),
            }
        )
    return rows


def main() -> None:
    """Measure every case, print a table, append one record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    print(
        "shape            bits dtype     tokens  dense ms     pq ms  table ms decode ms  pq/dense"
    )
    for shape in SHAPES:
        for bits in (4, 2, 1):
            for dtype in (torch.float32, torch.bfloat16):
                for row in measure(shape, bits, dtype, options.repeats):
                    rows.append(row)
                    print(
                        f"{shape!s:16} {bits:4} {row['dtype']:9} {row['tokens']:6} "
                        f"{row['dense_ms']:9.2f} {row['pq_ms']:9.2f} {row['table_ms']:9.2f} "
                        f"{row['decode_ms']:9.2f} {row['pq_ms'] / row['dense_ms']:9.2f}"
                    )
    append("runtime", seed=0, spec={"threads": options.threads}, results=rows)


if __name__ == "__main__":
    main()
