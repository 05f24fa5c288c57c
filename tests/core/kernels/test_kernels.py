"""Nearest-codeword kernels: both fast paths against the plain float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from groupings import grouped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping
from dpq_core.kernels import reference, torch_path
from dpq_core.kernels.cpu import nearest_and_sums as cpu
from dpq_core.kernels.cpu import nearest_jit as cpu_jit
from dpq_core.kernels.cpu.units import SLOT, START, STOP, Units

pytestmark = pytest.mark.portable

PATHS = {"cpu": cpu.assign, "torch": torch_path.assign}
KS = [2, 3, 16, 255, 256, 257, 1024]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def used_columns(points: Tensor, books: Tensor, sharing: int, pad: int) -> tuple[Tensor, Tensor]:
    """float64 points [G, N, d] and each group's codebook [G, K, d], pad coordinates zeroed."""
    G, d, _ = points.shape
    x = points.double().movedim(1, 2).clone()
    c = books.double()[torch.arange(G) // sharing]
    if pad:
        x[-1, :, d - pad :] = 0
        c[-1, :, d - pad :] = 0
    return x, c


def assert_nearest(
    path: str, points: Tensor, books: Tensor, sharing: int = 1, pad: int = 0
) -> None:
    """The fast path agrees with the reference up to near-ties, and its distances are accurate."""
    codes, distances = PATHS[path](points, books, grouping=grouped(points, sharing, pad=pad))
    expected, best = reference.assign(points, books, grouping=grouped(points, sharing, pad=pad))
    assert codes.dtype == torch.int32
    assert codes.shape == distances.shape == expected.shape
    x, c = used_columns(points, books, sharing, pad)
    chosen = c.gather(1, codes.long()[..., None].expand_as(x))
    true = (x - chosen).square().sum(2)
    assert (true - distances).abs().le(1e-5 * true + 1e-12).all()
    # The score |c|^2 / 2 - x.c is off by a few float32 ulps of |x|^2 around the mean codeword.
    rounding = 1e-6 * (x - c.mean(1, keepdim=True)).square().sum(2)
    assert (true - best).le(1e-5 * best + rounding).all()
    assert (codes != expected).float().mean() < 0.02


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("d", range(1, 33))
def test_every_d(path: str, d: int) -> None:
    assert_nearest(path, normal(3, d, 37), normal(2, 19, d, seed=1), sharing=2, pad=d // 2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 9])
@pytest.mark.parametrize("K", KS)
def test_every_k(path: str, d: int, K: int) -> None:
    assert_nearest(path, normal(2, d, 21), normal(2, K, d, seed=1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("d", [1, 2, 4, 8, 20])
def test_k_of_65536(path: str, d: int) -> None:
    assert_nearest(path, normal(1, d, 17), normal(1, 65_536, d, seed=1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sharing", [1, 2, 3, 7])
@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("groups", [1, 3, 7])
def test_groups_tie_and_pad(path: str, groups: int, sharing: int, pad: int) -> None:
    books = normal(-(-groups // sharing), 32, 4, seed=1)
    assert_nearest(path, normal(groups, 4, 33), books, sharing=sharing, pad=pad)


@pytest.mark.parametrize("path", PATHS)
def test_pad_coordinates_do_not_count(path: str) -> None:
    points, books = normal(2, 4, 50), normal(1, 16, 4, seed=1)
    plain = PATHS[path](points, books, grouping=grouped(points, 2, pad=2))
    points[-1, 2:] = 1e6
    for a, b in zip(
        plain, PATHS[path](points, books, grouping=grouped(points, 2, pad=2)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 12, 32])
@pytest.mark.parametrize("K", [16, 256, 4096])
def test_points_that_are_codewords_are_recovered(path: str, d: int, K: int) -> None:
    books = normal(2, K, d)
    codes = torch.randint(K, (2, 300), generator=torch.Generator().manual_seed(1))
    points = books.gather(1, codes[..., None].expand(-1, -1, d)).movedim(1, 2).contiguous()
    found, distances = PATHS[path](points, books, grouping=grouped(points, 1, pad=0))
    assert torch.equal(found, codes.int())
    assert (distances == 0).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("d", [1, 2, 4, 9])
def test_data_far_from_the_origin(path: str, d: int) -> None:
    """|x| is a thousand times the distances: the raw score would have no correct bits left."""
    points, books = normal(2, d, 200) + 3000, normal(2, 256, d, seed=1) + 3000
    assert_nearest(path, points, books)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("d", [1, 2, 4, 8, 9])
@pytest.mark.parametrize("K", [6, 4098])
def test_ties_go_to_the_lowest_index(path: str, d: int, K: int) -> None:
    half = normal(1, K // 2, d)
    points = normal(1, d, 100, seed=1)
    codes, _ = PATHS[path](points, torch.cat([half, half], dim=1), grouped(points))
    if path == "torch" and d > torch_path.MAX_EXACT_D:
        # No BLAS promises equal products for equal columns: either of two equals may be found.
        codes = codes % (K // 2)
        assert torch.equal(codes, PATHS[path](points, half, grouped(points))[0])
    assert codes.max() < K // 2


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 5),
    d=st.sampled_from([1, 2, 3, 4, 8, 9, 17]),
    N=st.integers(1, 150),
    K=st.integers(1, 40),
    sharing=st.integers(1, 6),
    pad=st.integers(0, 16),
    seed=st.integers(0, 1000),
)
def test_any_shape(groups: int, d: int, N: int, K: int, sharing: int, pad: int, seed: int) -> None:
    books = normal(-(-groups // sharing), K, d, seed=seed + 1)
    for path in PATHS:
        assert_nearest(path, normal(groups, d, N, seed=seed), books, sharing=sharing, pad=pad % d)


def test_long_groups_are_cut_into_units() -> None:
    points, books = normal(2, 4, 5001), normal(2, 8, 4, seed=1)
    codes, distances = cpu.assign(points, books, grouping=grouped(points, 1, pad=0))
    for a, b in ((0, 2000), (2000, 5001)):
        some = points[:, :, a:b].contiguous()
        part = cpu.assign(some, books, grouped(some))
        assert torch.equal(codes[:, a:b], part[0])
        assert torch.equal(distances[:, a:b], part[1])


@pytest.mark.parametrize("groups", [1, 2, 5, 90])
@pytest.mark.parametrize("sharing", [1, 2, 90])
@pytest.mark.parametrize("pad", [0, 1])
def test_units_cover_every_point_once(groups: int, sharing: int, pad: int) -> None:
    units = Units.of(
        Grouping.of_subvectors((groups, 5, 4500), groups_per_codebook=sharing, pad=pad),
        K=16,
        width=5,
    )
    seen = np.zeros((groups, 4500), dtype=int)
    for group, start, stop, _, _ in units.table:
        seen[group, start:stop] += 1
    assert (seen == 1).all()
    for threads in (1, 3, 64):
        batches = units.batches(threads)
        assert [a for a, _ in batches] == [0, *[b for _, b in batches[:-1]]]
        assert batches[-1][1] == len(units.table)
        slots = [set(units.table[a:b, SLOT]) - {-1} for a, b in batches]
        assert sum(map(len, slots)) == len(set().union(*slots))  # no slot in two batches
    assert (units.table[:, STOP] > units.table[:, START]).all()


def test_partial_sums_stay_within_their_memory() -> None:
    units = Units.of(
        Grouping.of_subvectors((64, 8, 100_000), groups_per_codebook=64), K=65_536, width=9
    )
    assert units.slots * 65_536 * 9 * 8 <= 1 << 28
    assert units.slots > 16


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("groups", "sharing", "pad"), [(5, 2, 0), (5, 5, 1), (5, 2, 1), (3, 1, 2)])
def test_sums_and_moments_agree_between_paths(
    weighted: bool, groups: int, sharing: int, pad: int
) -> None:
    points, books = normal(groups, 4, 300), normal(-(-groups // sharing), 16, 4, seed=1)
    if pad:
        points[-1, 4 - pad :] = 0
    weights = normal(groups, 300, seed=2).abs() if weighted else None
    fast = cpu.CPULloyd(points, K=16, grouping=grouped(points, sharing, pad=pad), weights=weights)
    slow = torch_path.TorchLloyd(
        points, K=16, grouping=grouped(points, sharing, pad=pad), weights=weights
    )
    torch.testing.assert_close(fast.moments(), slow.moments(), rtol=1e-9, atol=1e-9)
    moved, sums = fast.step(books)
    assert moved == groups * 300
    expected = slow.step(books)[1]
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(fast.result(), slow.result())
    trained = groups - int(pad > 0 and sharing > 1 and (groups - 1) % sharing > 0)
    count = weights[:trained].double().sum() if weights is not None else trained * 300
    assert sums[..., 4].sum().item() == pytest.approx(float(count))
    assert fast.step(books)[0] == 0


def test_lanes_fit_the_block() -> None:
    for d in range(1, 33):
        assert len(cpu_jit.unrolled_dims(d)) in (0, d)
        assert cpu_jit.LANES * cpu_jit.registers(d) >= 16


@pytest.mark.parametrize(
    ("points", "books", "kwargs", "text"),
    [
        (
            (2, 4, 9),
            (2, 8, 3),
            {},
            "2 groups, 1 per codebook, need codebooks [2, K, 4]",
        ),
        ((3, 4, 9), (1, 8, 4), {"sharing": 2}, "need codebooks [2, K, 4]"),
        ((2, 4, 9), (2, 8, 4), {"pad": 4}, "pad must be 0..3"),
        ((2, 4, 9), (1, 8, 4), {"sharing": 0}, "groups_per_codebook and stages must be at least 1"),
        ((2, 4, 0), (2, 8, 4), {}, "subvectors must be float32 [G, d, P]"),
        ((2, 4), (2, 8, 4), {}, "subvectors must be float32 [G, d, P]"),
    ],
)
def test_shapes_that_do_not_fit(
    points: tuple[int, ...], books: tuple[int, ...], kwargs: dict[str, int], text: str
) -> None:
    def assign() -> None:
        x = torch.zeros(points)
        kernels.assign(x, torch.zeros(books), grouped(x, **kwargs) if kwargs else None)

    with pytest.raises(SpecError) as caught:
        assign()
    assert text in str(caught.value)


def test_dtypes_that_do_not_fit() -> None:
    with pytest.raises(SpecError, match="float32"):
        kernels.assign(torch.zeros(1, 2, 3).double(), torch.zeros(1, 2, 2))
    with pytest.raises(SpecError, match="codebooks must be float32"):
        kernels.assign(torch.zeros(1, 2, 3), torch.zeros(1, 2, 2).half())


def test_strided_points_are_accepted() -> None:
    points = normal(9, 2, 4).movedim(0, 2)  # [2, 4, 9], not contiguous
    books = normal(2, 8, 4, seed=1)
    expected = kernels.assign(points.contiguous(), books)
    assert torch.equal(kernels.assign(points, books)[0], expected[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_reference() -> None:
    points, books = normal(5, 4, 500), normal(3, 256, 4, seed=1)
    codes, distances = kernels.assign(points.cuda(), books.cuda(), grouped(points, 2, pad=1))
    expected, best = reference.assign(points, books, grouping=grouped(points, 2, pad=1))
    assert (codes.cpu() == expected).float().mean() > 0.99
    torch.testing.assert_close(distances.cpu(), best, rtol=1e-4, atol=1e-5)
