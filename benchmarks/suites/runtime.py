"""Time of one PQLinear against a dense layer: every way to multiply, and the one that is chosen.

    python benchmarks/suites/runtime.py --threads 2

Every case is checked against the plain reference before it is timed. The ways of one case take
turns, so that a busy machine slows them alike; what is shown are medians.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpq_core.kernels.cpu import trellis_decode
from dpq_core.runtime import PQLinear, PQWeight, product, reference
from dpq_core.spec import QuantSpec
from dpq_core.tensor import trellis
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import PQTensor, expected_parts

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import append  # benchmarks/record.py
from timing import medians  # benchmarks/timing.py

SHAPES = ((4096, 4096), (11_008, 4096), (1024, 384))
TOKENS = (1, 2, 4, 8, 16, 64, 128)
CODES = ("learned", "trellis")


def random_layer(shape: tuple[int, int], spec: QuantSpec) -> tuple[PQTensor, PQLinear]:
    """A layer with random codes, codebooks and scales, its columns in their order.

    Groups of a trellis have the nearest integers around its rate.
    """
    p = Partition.of(shape, Layout.LINEAR, spec)
    values = {"row_scale": torch.rand(p.rows).half()}
    expected = expected_parts(p, spec)
    if p.row_bits:
        bits = torch.arange(1, p.groups + 1) * p.row_bits // p.groups
        places = torch.randperm(p.rows * p.cols)[: expected["outliers"][1][0]].sort().values
        values |= {
            "codes": torch.randint(256, expected["codes"][1], dtype=torch.uint8),
            "rates": trellis.pack_rates(bits.diff(prepend=bits.new_zeros(1))),
            "group_scale": torch.rand(p.groups).half(),
            "outliers": places.int(),
            "outlier_values": torch.randn(len(places)).half(),
        }
    else:
        values |= {
            "codes": pack(torch.randint(p.K, (p.groups, p.points)), p.code_bits),
            "codebooks": torch.randn(p.codebooks, p.K, p.d).half(),
        }
    stored = {name: values[name] for name in expected}
    pq = PQTensor(partition=p, spec=spec, dtype=torch.float32, stored=stored)
    return pq, PQLinear(PQWeight.from_pq(pq))


@torch.no_grad()
def measure(
    shape: tuple[int, int], bits: int, codes: str, dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    """One row per number of tokens, for learned codebooks or trellis ``codes``."""
    spec = QuantSpec.preset(bits, permute=False)
    if codes == "trellis":
        spec = spec.replace(trellis_rate=float(bits))
    pq, layer = random_layer(shape, spec)
    frame = layer.weight.frame()
    dense = torch.nn.Linear(shape[1], shape[0], bias=False).to(dtype)
    rows = []
    for count in TOKENS:
        x = torch.randn(count, shape[1]).to(dtype)
        expected = reference.linear(x.float(), pq)
        tolerance = 1e-3 if dtype is torch.float32 else 3e-2
        inputs = x if frame.keeps_inputs else frame.activations_in(x)
        runs: dict[str, Callable[[], Any]] = {
            "dense": lambda x=x: dense(x),
            "pq": lambda x=x: layer(x),
            "decode": lambda x=inputs: product.decoded(x, layer.weight),
        }
        decoded, scale = runs["decode"]()
        outputs = {
            "pq": runs["pq"](),
            "decode": decoded.float() * (1 if scale is None else scale.float()),
        }
        if codes == "learned" or count <= trellis_decode.MAX_TOKENS:
            runs["table"] = lambda x=inputs: product.tabulated(x, layer.weight)
            outputs["table"] = runs["table"]()
        errors = {
            f"{name}_error": float((output.float() - expected).norm() / expected.norm())
            for name, output in outputs.items()
        }
        assert max(errors.values()) < tolerance, f"{shape} {bits} bits {count} tokens: {errors}"
        rows.append(
            {
                "shape": list(shape),
                "bits": bits,
                "codes": codes,
                "dtype": str(dtype).removeprefix("torch."),
                "tokens": count,
                **{f"{name}_ms": 1e3 * each for name, each in medians(runs, repeats).items()},
                **errors,
            }
        )
    return rows


def main() -> None:
    """Measure every case, print a table, append one record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2, 1])
    parser.add_argument("--codes", choices=CODES, nargs="+", default=CODES)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    print(
        "shape            bits codes   dtype     tokens  dense ms     pq ms  table ms decode ms"
        "  pq/dense"
    )
    cases = itertools.product(
        SHAPES[: options.shapes], options.bits, options.codes, (torch.float32, torch.bfloat16)
    )
    for shape, bits, codes, dtype in cases:
        for row in measure(shape, bits, codes, dtype, options.repeats):
            rows.append(row)
            print(
                f"{shape!s:16} {bits:4} {codes:7} {row['dtype']:9} {row['tokens']:6} "
                f"{row['dense_ms']:9.2f} {row['pq_ms']:9.2f} {row.get('table_ms', math.nan):9.2f} "
                f"{row['decode_ms']:9.2f} {row['pq_ms'] / row['dense_ms']:9.2f}",
                flush=True,
            )
    if not options.no_record:
        append("runtime", seed=0, spec={"threads": options.threads}, results=rows)


if __name__ == "__main__":
    main()
