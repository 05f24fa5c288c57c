"""PQTensor: decode is the gather it claims to be, sizes are those stored, parts are checked."""

from __future__ import annotations

import pytest
import torch
from builders import random_pq
from hypothesis import given
from strategies import matrix_shapes, plain_specs_up_to

from dpq_core.errors import ArtifactError
from dpq_core.spec import QuantSpec
from dpq_core.tensor.pq_tensor import PQTensor


@pytest.mark.slow
@given(matrix_shapes, plain_specs_up_to(K=512))
def test_decode_is_the_gather(shape, spec):
    pq = random_pq(shape, spec)
    p = pq.partition
    dense = pq.decode()
    assert dense.shape == shape
    for row in range(0, p.rows, 7):
        for col in range(0, p.cols, 5):
            cut, point = (col, row) if spec.orientation == "input" else (row, col)
            group = cut // p.d
            code = int(pq.codes_of(group)[point])
            value = pq.stored["codebooks"].float()[group // p.groups_per_codebook, code, cut % p.d]
            if spec.row_scale:
                value = value * pq.stored["row_scale"].float()[row]
            assert dense[row, col] == value


def test_nbytes_counts_every_part():
    pq = random_pq((512, 96), QuantSpec(d=4, K=256, scope="subspace"))
    assert pq.nbytes == 24 * 512 + 24 * 256 * 4 * 2 + 512 * 2
    assert pq.bits_per_weight == 8 * pq.nbytes / (512 * 96)


def test_decode_in_another_dtype():
    pq = random_pq((8, 8), QuantSpec())
    assert torch.equal(pq.decode(torch.bfloat16), pq.decode().bfloat16())


def broken(part, value):
    pq = random_pq((64, 12), QuantSpec(d=4, K=20))
    return pq, {**pq.parts(), part: value}


@pytest.mark.parametrize(
    ("part", "value", "text"),
    [
        ("codes", torch.zeros(3, 39, dtype=torch.uint8), "codes is"),
        ("codes", torch.zeros(3, 40, dtype=torch.int8), "codes is"),
        ("codes", torch.full((3, 40), 255, dtype=torch.uint8), "a code is 31"),
        ("codebooks", torch.full((1, 20, 4), torch.nan).half(), "NaN"),
        ("codebooks", torch.zeros(1, 21, 4).half(), "codebooks is"),
        ("row_scale", torch.full((64,), torch.inf).half(), "NaN or infinite"),
        ("row_scale", torch.zeros(64), "row_scale is"),
        ("pool", torch.zeros(1), "unknown"),
    ],
)
def test_damaged_parts_are_refused(part, value, text):
    pq, parts = broken(part, value)
    with pytest.raises(ArtifactError, match=text):
        PQTensor.from_parts(pq.partition, pq.spec, torch.float32, parts)


def test_a_missing_part_is_named():
    pq = random_pq((8, 8), QuantSpec())
    with pytest.raises(ArtifactError, match="codebooks"):
        PQTensor.from_parts(pq.partition, pq.spec, torch.float32, {"codes": pq.codes})
