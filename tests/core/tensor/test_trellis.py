"""F31: bit streams of trellis codes, their windows, and what readers refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dpq_core
from dpq_core import trellis_books
from dpq_core.artifact import FORMAT_VERSION
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.methods.quantize import quantize
from dpq_core.spec import QuantSpec
from dpq_core.tensor import trellis
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import PQTensor

K = 1024
SPEC = QuantSpec.preset(2).replace(trellis_rate=2.0)


def windows_by_definition(bits: list[int], rate: int, points: int) -> list[int]:
    """Windows of a stream of single bits, straight from the format (F31)."""
    windows = []
    for p in range(points):
        start = p // trellis_books.RESTART * trellis_books.RESTART * rate
        size = 10 if rate <= 8 else 12
        seen = [0] * size + bits[start : (p + 1) * rate]
        windows.append(int("".join(map(str, seen[-size:])), 2))
    return windows


@given(
    rates=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    points=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_windows_are_those_of_the_format(rates: list[int], points: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    streams = [torch.randint(2, (points * rate,), generator=generator).tolist() for rate in rates]
    windows = torch.tensor(
        [windows_by_definition(s, rate, points) for s, rate in zip(streams, rates, strict=True)]
    )
    rate = torch.tensor(rates)
    packed = trellis.pack_windows(windows.int(), rate)
    assert packed.shape == (sum(rates), -(-points // 8))
    index = torch.randperm(points, generator=generator)
    assert torch.equal(trellis.windows_at(packed, rate, points, index, K), windows[:, index])
    assert torch.equal(trellis.windows(packed, rate, points, K), windows.int())


@given(rates=st.lists(st.integers(0, 12), min_size=1, max_size=9))
def test_rates_round_trip(rates: list[int]) -> None:
    packed = trellis.pack_rates(torch.tensor(rates))
    assert len(packed) == trellis.rate_bytes(len(rates))
    assert trellis.rates_of(packed, len(rates)).tolist() == rates


def test_codebooks_are_those_of_the_format() -> None:
    """The file is normative: other bytes would decode every artifact to something else."""
    folder = Path(dpq_core.__file__).parent
    for file in (folder / "trellis_1024.npy", folder / "trellis_4096.npy"):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert digest in (folder / "artifact" / "FORMAT.md").read_text()
    books = trellis_books.codebooks(K)
    assert books.shape == (13, 4 * K, 2)
    assert not books[0].any()
    assert not books[:9, K:].any()
    low, high = trellis_books.by_coordinate(K)
    assert torch.equal(low, books[:9, :K].mT)
    assert torch.equal(high, books[9:].mT)


def quantized(shape: tuple[int, int], rate: float = 2.0) -> PQTensor:
    generator = torch.Generator().manual_seed(1)
    spec = SPEC.replace(trellis_rate=rate)
    partition = Partition.of(shape, Layout.LINEAR, spec)
    return quantize(torch.randn(shape, generator=generator), partition, spec, "w").pq


def changed(pq: PQTensor, **parts: torch.Tensor) -> PQTensor:
    return PQTensor.from_parts(pq.partition, pq.spec, pq.dtype, {**pq.parts(), **parts})


def test_bad_parts_are_refused() -> None:
    pq = quantized((130, 70))
    rates = trellis.rates_of(pq.stored["rates"], 35)
    more = rates.clone()
    more[0] += 1
    with pytest.raises(ArtifactError, match=r"rates .* add up"):
        changed(pq, rates=trellis.pack_rates(more))
    high = rates.clone()
    high[0], high[1] = 13, rates[0] + rates[1] - 13
    with pytest.raises(ArtifactError, match="rates go up to"):
        changed(pq, rates=trellis.pack_rates(high.clamp(min=0)))
    for places in ([5, 5, 9], [9, 5, 20], [-1, 5, 9], [5, 6, 130 * 70]):
        with pytest.raises(ArtifactError, match="outliers"):
            changed(pq, outliers=torch.tensor(places, dtype=torch.int32))
    with pytest.raises(ArtifactError, match="NaN"):
        changed(pq, outlier_values=torch.full((3,), float("nan"), dtype=torch.float16))


def test_sizes_are_those_of_the_spec() -> None:
    for rate in (0.5, 2.0, 2.125, 4.0, 5.25):
        pq = quantized((256, 128), rate)
        assert pq.codes.numel() == 256 * round(rate * 128) // 8
        overhead = 64 * 2 + 32 + 256 * 2 + 8 * 6
        assert pq.nbytes == pq.codes.numel() + overhead


def test_a_trellis_brings_what_it_needs_along_and_ends_with_it() -> None:
    assert (SPEC.d, SPEC.K, SPEC.permute, SPEC.bits) == (2, K, False, 2.0)
    assert SPEC.version == FORMAT_VERSION
    assert QuantSpec.from_json(SPEC.to_json()) == SPEC
    assert SPEC.replace(bits=4) == SPEC.replace(trellis_rate=4.0)
    ended = SPEC.replace(d=4, K=256)
    assert ended == QuantSpec.preset(2)
    assert "trellis_rate" not in ended.to_json()
    for wrong in ({"trellis_rate": 6.5}, {"trellis_rate": -1.0}, {"permute": True}, {"stages": 2}):
        with pytest.raises(SpecError):
            SPEC.replace(**wrong)


def test_a_matrix_too_large_for_places_of_outliers_is_refused() -> None:
    with pytest.raises(SpecError, match="at most"):
        Partition.of((2**17, 2**14), Layout.LINEAR, SPEC)
