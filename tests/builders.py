"""Small valid objects for tests: random PQTensors without running k-means."""

from __future__ import annotations

import torch

from dpq_core.layout import Layout
from dpq_core.packing import pack
from dpq_core.partition import Partition
from dpq_core.pq_tensor import PQTensor
from dpq_core.spec import QuantSpec


def random_pq(
    shape: tuple[int, ...], spec: QuantSpec, layout: Layout = Layout.LINEAR, seed: int = 0
) -> PQTensor:
    """A PQTensor with random codes, codebooks and scales of the right shapes."""
    generator = torch.Generator().manual_seed(seed)
    p = Partition.of(shape, layout, spec)
    codes = torch.randint(p.K, (p.groups, p.points), generator=generator)
    dtype = getattr(torch, spec.codebook_dtype)
    return PQTensor(
        partition=p,
        dtype=torch.float32,
        codes=pack(codes, p.code_bits),
        codebooks=torch.randn(p.codebooks, p.K, p.d, generator=generator).to(dtype),
        row_scale=torch.rand(p.rows, generator=generator).half() + 0.5 if spec.row_scale else None,
    )
