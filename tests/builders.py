"""Small valid objects for tests: random PQTensors without running k-means."""

from __future__ import annotations

import torch

from dpq_core.spec import QuantSpec
from dpq_core.tensor import trellis
from dpq_core.tensor.packing import pack
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import PQTensor, column_bits, expected_parts


def random_pq(
    shape: tuple[int, ...], spec: QuantSpec, layout: Layout = Layout.LINEAR, seed: int = 0
) -> PQTensor:
    """A PQTensor with random codes, codebooks, scales, orders and signs of the right shapes."""
    generator = torch.Generator().manual_seed(seed)
    p = Partition.of(shape, layout, spec)
    stored = {}
    for name, (dtype, size) in expected_parts(p, spec).items():
        if name == "codes" and p.row_bits:
            stored[name] = torch.randint(256, size, generator=generator).to(dtype)
        elif name == "rates":
            rates = torch.full((p.groups,), p.row_bits // p.groups)
            rates[: p.row_bits % p.groups] += 1
            rates[0], rates[1] = rates[0] + rates[1], 0
            stored[name] = trellis.pack_rates(rates)
        elif name == "outliers":
            places = torch.randperm(p.rows * p.cols, generator=generator)[: size[0]]
            stored[name] = places.sort().values.to(dtype)
        elif name == "codes":
            codes = torch.randint(p.K, (p.stages * p.groups, p.points), generator=generator)
            stored[name] = pack(codes, p.code_bits)
        elif name == "index_map":
            index = torch.randint(p.pool, (size[0], p.K), generator=generator)
            stored[name] = pack(index, p.index_bits)
        elif name == "permutation":
            order = torch.randperm(p.cols, generator=generator)
            stored[name] = pack(order[None], column_bits(p.cols))[0]
        elif name.startswith("signs"):
            n = p.cols if name == "signs_in" else p.rows
            stored[name] = pack(torch.randint(2, (1, n), generator=generator), 1)[0]
        elif name in ("codebooks", "pool"):
            values = torch.randn(size, generator=generator)
            stored[name] = (
                (values * 30).clamp(-127, 127).to(dtype)
                if dtype == torch.int8
                else values.to(dtype)
            )
        else:
            stored[name] = torch.rand(size, generator=generator).half() + 0.5
    return PQTensor(partition=p, spec=spec, dtype=torch.float32, stored=stored)
