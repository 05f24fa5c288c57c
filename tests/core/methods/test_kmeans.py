"""k-means: invariants of the result, of its records and of its randomness."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from groupings import grouped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import SpecError
from dpq_core.kernels import torch_path
from dpq_core.kernels.cpu import nearest_and_sums as cpu
from dpq_core.methods.codebooks.kmeans import KMeansResult, kmeans
from dpq_core.methods.codebooks.kmeans_init import initial_codebooks
from dpq_core.spec import KMeansSpec

pytestmark = pytest.mark.portable

LLOYD = KMeansSpec(iterations=0, tail=12)
RELAXED = KMeansSpec(iterations=10, tail=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decode(result: KMeansResult, sharing: int = 1) -> Tensor:
    """[G, d, N]."""
    books = result.codebooks[torch.arange(len(result.codes)) // sharing]
    index = result.codes.long()[..., None].expand(-1, -1, books.shape[2])
    return books.gather(1, index).movedim(1, 2)


def error(points: Tensor, result: KMeansResult, sharing: int = 1) -> float:
    """Mean squared distance per subvector."""
    return float((points - decode(result, sharing)).double().square().sum(1).mean())


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the engine on the torch path, as it does on a GPU."""
    monkeypatch.setattr(cpu, "CPULloyd", torch_path.TorchLloyd)


@pytest.mark.parametrize("sharing", [1, 3, 6])
@pytest.mark.parametrize("d", [1, 4, 9])
def test_plain_lloyd_never_gets_worse(d: int, sharing: int) -> None:
    points = normal(6, d, 700)
    result = kmeans(points, K=32, grouping=grouped(points, sharing), spec=LLOYD, seed=1)
    objectives = [s.objective for s in result.stats]
    assert len(objectives) == 12
    for before, after in itertools.pairwise(objectives):
        assert after <= before * (1 + 1e-6)
    assert error(points, result, sharing) <= objectives[-1] * (1 + 1e-6)
    assert result.codebooks.shape == (-(-6 // sharing), 32, d)
    assert result.codebooks.dtype == torch.float32


def test_the_record_is_the_objective_of_the_clean_assignment() -> None:
    points = normal(4, 3, 500) + 5
    short = kmeans(points, K=16, spec=KMeansSpec(iterations=0, tail=4), seed=3)
    longer = kmeans(points, K=16, spec=KMeansSpec(iterations=0, tail=5), seed=3)
    # Iteration 5 assigns to the codebooks that four iterations end with.
    assert longer.stats[-1].objective == pytest.approx(error(points, short), rel=1e-5)
    assert longer.stats[0].moved == 4 * 500
    assert longer.stats[-1].moved < longer.stats[1].moved
    assert all(s.seconds > 0 and s.empty == 0 for s in longer.stats)


@pytest.mark.parametrize("spec", [RELAXED, LLOYD, KMeansSpec(iterations=0, tail=0)])
@pytest.mark.parametrize("init", ["random", "kmeans++"])
def test_codes_are_nearest_in_the_final_codebooks(spec: KMeansSpec, init: str) -> None:
    spec = KMeansSpec(**{**vars(spec), "init": init})
    points = normal(5, 4, 300)
    result = kmeans(points, K=16, grouping=grouped(points, 2), spec=spec, seed=0)
    assert torch.equal(
        result.codes,
        kernels.assign(points, result.codebooks, grouping=grouped(points, 2))[0],
    )
    assert len(result.stats) == spec.iterations + spec.tail


def test_the_tail_leaves_no_noise() -> None:
    """Codewords are the means of their members once noiseless iterations have converged."""
    points = normal(2, 2, 200)
    result = kmeans(points, K=8, spec=KMeansSpec(iterations=10, tail=60), seed=0)
    assert result.stats[-1].moved == 0
    for g in range(2):
        for k in range(8):
            members = points[g][:, result.codes[g] == k]
            torch.testing.assert_close(result.codebooks[g, k], members.mean(1))


def test_relaxation_beats_plain_lloyd_at_equal_passes() -> None:
    points = normal(16, 4, 1152)
    plain = kmeans(points, K=256, spec=KMeansSpec(iterations=0, tail=22), seed=0)
    relaxed = kmeans(points, K=256, spec=KMeansSpec(iterations=20, tail=2), seed=0)
    assert error(points, relaxed) < 0.97 * error(points, plain)


def test_noise_power_zero_is_plain_lloyd() -> None:
    points = normal(2, 4, 300)
    off = kmeans(points, K=16, spec=KMeansSpec(iterations=8, tail=1, noise_power=0), seed=0)
    plain = kmeans(points, K=16, spec=KMeansSpec(iterations=0, tail=9), seed=0)
    assert torch.equal(off.codebooks, plain.codebooks)


@pytest.mark.parametrize("sharing", [1, 4])
def test_as_many_codewords_as_points_is_exact(sharing: int) -> None:
    points = normal(4, 4, 50)
    for spec in (LLOYD, RELAXED, KMeansSpec(iterations=0, tail=0)):
        result = kmeans(
            points, K=50 * sharing, grouping=grouped(points, sharing), spec=spec, seed=0
        )
        if spec is not RELAXED:  # noise may bring two points to one codeword for good
            assert error(points, result, sharing) == 0
    result = kmeans(points, K=300, grouping=grouped(points, sharing), spec=LLOYD, seed=0)
    assert error(points, result, sharing) == 0


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("sharing", [1, 20])
def test_threads_and_repetition_do_not_change_a_bit(sharing: int) -> None:
    points, weights = normal(20, 4, 3000), normal(20, 3000, seed=1).abs()
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        results.append(
            kmeans(
                points,
                K=64,
                grouping=grouped(points, sharing),
                spec=RELAXED,
                seed=7,
                weights=weights,
            )
        )
    for other in results[1:]:
        assert torch.equal(other.codebooks, results[0].codebooks)
        assert torch.equal(other.codes, results[0].codes)
        assert [s.objective for s in other.stats] == [s.objective for s in results[0].stats]
    seed = kmeans(
        points,
        K=64,
        grouping=grouped(points, sharing),
        spec=RELAXED,
        seed=8,
        weights=weights,
    )
    assert not torch.equal(seed.codebooks, results[0].codebooks)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    kmeans(normal(1, 2, 50), K=4, spec=RELAXED, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_weight_two_is_the_same_as_a_duplicate() -> None:
    points, books = normal(1, 3, 60), normal(1, 8, 3, seed=1)
    weights = torch.ones(1, 60)
    weights[0, :20] = 2
    doubled = torch.cat([points, points[:, :, :20]], dim=2)
    _, weighted = kernels.lloyd(points, K=8, weights=weights).step(books)
    _, plain = kernels.lloyd(doubled, K=8).step(books)
    torch.testing.assert_close(weighted[..., :4], plain)
    assert float(weighted[..., 4].sum()) == 20 * 4 + 40


def test_points_of_weight_zero_do_not_pull() -> None:
    points = torch.cat([normal(1, 2, 100), normal(1, 2, 100) + 50], dim=2)
    weights = torch.cat([torch.ones(1, 100), torch.zeros(1, 100)], dim=1)
    result = kmeans(points, K=4, spec=KMeansSpec(iterations=0, tail=20), seed=0, weights=weights)
    assert torch.isfinite(result.codebooks).all()
    assert len(result.codes[0, :100].unique()) == 4
    none = kmeans(points, K=4, spec=RELAXED, seed=0, weights=torch.zeros(1, 200))
    assert torch.isfinite(none.codebooks).all()


@pytest.mark.parametrize(("d", "K", "limit"), [(1, 256, 1.15), (2, 1024, 1.3), (3, 1024, 1.15)])
def test_dense_codewords_are_where_rate_distortion_theory_has_them(
    d: int, K: int, limit: float
) -> None:
    """Zador's constants of the Gaussian, at high rate: D d = G_d K^(-2/d), by d."""
    bound = {1: 2.72, 2: 2.0166, 3: 1.82}[d] * K ** (-2 / d)
    points = normal(1, d, 32_768)
    found = kmeans(points, K=K, spec=KMeansSpec(), seed=0)
    error = (found.codebooks[0][found.codes[0].long()].T - points[0]).square().mean()
    assert 0.8 * bound < float(error) < limit * bound
    random = kmeans(points, K=K, spec=KMeansSpec(init="random"), seed=0).stats[-1].objective
    assert found.stats[-1].objective < 0.97 * random


def test_an_open_start_is_settled_by_the_bits_per_weight() -> None:
    dense = KMeansSpec(init="kmeans++", noise_power=0.0)
    for d, K in ((4, 4096), (3, 512), (2, 64), (1, 8)):
        assert KMeansSpec().resolved(d, K) == dense
        assert KMeansSpec().resolved(d, K // 2) == KMeansSpec(init="random")
    for init in ("random", "kmeans++"):
        assert KMeansSpec(init=init).resolved(1, 256) == KMeansSpec(init=init)
    points = normal(1, 2, 2048)
    one, other = (kmeans(points, K=64, spec=spec, seed=0) for spec in (KMeansSpec(), dense))
    assert torch.equal(one.codebooks, other.codebooks)


@pytest.mark.parametrize("spec", [LLOYD, RELAXED])
def test_empty_codewords_are_split_off_the_fullest(spec: KMeansSpec) -> None:
    """Half of the data is one point: its duplicates among the first codewords start out empty."""
    points = normal(3, 2, 512)
    points[:, :, ::2] = 0
    spec = dataclasses.replace(spec, init="random")
    result = kmeans(points, K=64, spec=spec, seed=0)
    assert result.stats[0].empty > 3 * 16
    assert result.stats[-1].empty < 3 * 8
    assert all(len(codes.unique()) > 56 for codes in result.codes)


@pytest.mark.parametrize("init", ["random", "kmeans++"])
@pytest.mark.parametrize("K", [2, 5, 40, 300])
@pytest.mark.parametrize("weighted", [False, True])
def test_degenerate_data_stays_finite(init: str, K: int, weighted: bool) -> None:
    spec = KMeansSpec(iterations=3, tail=2, init=init)
    few = torch.randint(3, (2, 3, 20), generator=torch.Generator().manual_seed(0)).float()
    for points in (torch.full((2, 3, 20), 7.0), few, normal(2, 3, 1), torch.zeros(2, 3, 5)):
        weights = torch.ones(2, points.shape[2]) if weighted else None
        result = kmeans(points, K=K, spec=spec, seed=0, weights=weights)
        assert torch.isfinite(result.codebooks).all()
        assert error(points, result) < 1e-9 or points is few


def test_three_distinct_points_are_found() -> None:
    points = torch.randint(3, (2, 1, 200), generator=torch.Generator().manual_seed(0)).float()
    result = kmeans(points, K=16, spec=KMeansSpec(iterations=0, tail=3, init="kmeans++"), seed=0)
    assert error(points, result) == 0


def test_a_padded_group_does_not_train_a_shared_codebook() -> None:
    points = normal(4, 4, 200)
    points[-1, 2:] = 0
    shared = kmeans(points, K=16, grouping=grouped(points, 2, pad=2), spec=RELAXED, seed=0)
    other = points.clone()
    other[-1, :2] *= 100
    assert torch.equal(
        kmeans(other, K=16, grouping=grouped(other, 2, pad=2), spec=RELAXED, seed=0).codebooks,
        shared.codebooks,
    )
    best = (points[-1].T[:, None, :2] - shared.codebooks[1, :, :2]).square().sum(2).argmin(1)
    assert (shared.codes[-1] == best).float().mean() > 0.99
    alone = kmeans(points[:3], K=16, grouping=grouped(points[:3], 2, pad=2), spec=LLOYD, seed=0)
    assert alone.codebooks.shape[0] == 2
    trained = alone.codebooks[1, :, :2]
    assert float((trained - alone.codebooks[1, 0, :2]).abs().max()) > 0.5


def test_a_ragged_last_codebook_is_trained_on_its_own_groups() -> None:
    points = normal(5, 2, 100)
    points[4] += 10
    result = kmeans(points, K=8, grouping=grouped(points, 2), spec=RELAXED, seed=0)
    assert result.codebooks.shape == (3, 8, 2)
    assert (result.codebooks[2] > 5).all()
    assert error(points, result, sharing=2) < 1


@pytest.mark.usefixtures("torch_only")
@pytest.mark.parametrize("weighted", [False, True])
def test_the_torch_path_reaches_the_same_error(weighted: bool) -> None:
    points = normal(6, 4, 800)
    weights = normal(6, 800, seed=1).abs() if weighted else None
    slow = kmeans(
        points,
        K=32,
        grouping=grouped(points, 4, pad=1),
        spec=RELAXED,
        seed=0,
        weights=weights,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.undo()
        patch.setattr(cpu, "CPULloyd", COMPILED)
        fast = kmeans(
            points,
            K=32,
            grouping=grouped(points, 4, pad=1),
            spec=RELAXED,
            seed=0,
            weights=weights,
        )
    assert slow.stats[-1].objective == pytest.approx(fast.stats[-1].objective, rel=0.01)
    assert slow.stats[0].objective == pytest.approx(fast.stats[0].objective, rel=1e-6)


COMPILED = cpu.CPULloyd


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("group", [0, 2])
def test_values_that_are_not_finite_are_refused(bad: float, group: int) -> None:
    points = normal(3, 4, 50)
    points[group, 1, 7] = bad
    with pytest.raises(SpecError, match="NaN or infinite"):
        kmeans(points, K=4, grouping=grouped(points, 3, pad=1), spec=RELAXED, seed=0)


def test_bad_weights_are_refused() -> None:
    points = normal(2, 4, 50)
    with pytest.raises(SpecError, match=r"weights must be \[2, 50\]"):
        kmeans(points, K=4, spec=RELAXED, seed=0, weights=torch.ones(1, 50))
    with pytest.raises(SpecError, match="must not be negative"):
        kmeans(points, K=4, spec=RELAXED, seed=0, weights=-torch.ones(2, 50))
    with pytest.raises(SpecError, match="NaN or infinite"):
        kmeans(points, K=4, spec=RELAXED, seed=0, weights=torch.full((2, 50), float("nan")))


@pytest.mark.parametrize("method", ["random", "kmeans++"])
@pytest.mark.parametrize(("K", "points"), [(30, 30), (30, 47), (256, 300), (600, 1000)])
def test_first_codewords_are_distinct_data_points(method: str, K: int, points: int) -> None:
    data = torch.arange(2 * 3 * points).reshape(6, 1, points).float()
    books = initial_codebooks(
        data,
        None,
        grouped(data, 2),
        K=K,
        method=method,
        generator=torch.Generator().manual_seed(0),
    )
    assert books.shape == (3, K, 1)
    for c, book in enumerate(books):
        own = set(data[2 * c : 2 * c + 2].flatten().tolist())
        assert set(book.flatten().tolist()) <= own
        distinct = len(book.unique())
        assert distinct == K if method == "random" or K <= 256 else distinct > 0.9 * K


def test_plusplus_finds_far_clusters_that_random_misses() -> None:
    points = normal(8, 2, 2000) * 0.01
    points[:, :, :10] += torch.arange(10)[None, None] * 100.0 + 100
    spread = {}
    for init in ("random", "kmeans++"):
        result = kmeans(points, K=16, spec=KMeansSpec(iterations=0, tail=3, init=init), seed=0)
        spread[init] = error(points, result)
    assert spread["kmeans++"] < 0.01 * spread["random"]


def test_a_large_codebook_is_learned_in_bounded_memory() -> None:
    points = normal(3, 2, 8000)
    result = kmeans(
        points,
        K=16_384,
        grouping=grouped(points, 3),
        spec=KMeansSpec(iterations=2, tail=1),
        seed=0,
    )
    assert result.codes.max() > 16_000
    assert error(points, result, sharing=3) < 1e-3


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 6),
    d=st.sampled_from([1, 2, 4, 9]),
    N=st.integers(1, 90),
    K=st.integers(2, 40),
    sharing=st.integers(1, 7),
    pad=st.integers(0, 8),
    init=st.sampled_from(["random", "kmeans++"]),
    iterations=st.integers(0, 4),
    tail=st.integers(0, 2),
)
def test_any_shape(
    groups: int,
    d: int,
    N: int,
    K: int,
    sharing: int,
    pad: int,
    init: str,
    iterations: int,
    tail: int,
) -> None:
    points = normal(groups, d, N)
    spec = KMeansSpec(iterations=iterations, tail=tail, init=init)
    result = kmeans(points, K=K, grouping=grouped(points, sharing, pad=pad % d), spec=spec, seed=0)
    assert result.codebooks.shape == (-(-groups // sharing), K, d)
    assert torch.isfinite(result.codebooks).all()
    assert result.codes.shape == (groups, N)
    assert result.codes.min() >= 0
    assert result.codes.max() < K
    assert len(result.stats) == iterations + tail


def test_weighed_numbers_get_more_codewords() -> None:
    points = normal(1, 1, 20_000)
    right = (points[:, 0] > 0).float()
    heavy = kmeans(points, K=64, spec=KMeansSpec(), seed=0, weights=1 + 26 * right)
    even = kmeans(points, K=64, spec=KMeansSpec(), seed=0)
    above = [int((found.codebooks > 0).sum()) for found in (even, heavy)]
    assert abs(above[0] - 32) <= 2
    assert 44 <= above[1] <= 52  # 27^(1/3) = 3 to 1: 48


def test_a_handful_of_distinct_numbers_is_kept_exactly() -> None:
    values = torch.tensor([-3.0, 0.0, 0.5, 1.0, 1000.0])
    points = values[torch.arange(4000) % 5][None, None].contiguous()
    found = kmeans(points, K=16, spec=KMeansSpec(), seed=0)
    assert torch.equal(found.codebooks[0, found.codes[0].long(), 0], points[0, 0])
