"""Hadamard products against their dense definition, and the randomised transform of a weight."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpq_core.tensor.basis import hadamard, transform

pytestmark = pytest.mark.portable

SMALL = range(1, 201)
LARGE = (1152, 3456, 4608, 6912, 11008, 4099)


def _random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _entry(n: int, i: int, j: int) -> float:
    """Q_n[i, j], entry by entry from the definition: shares no code with the module."""
    f = hadamard.factors(n)
    (a, b), (c, e) = divmod(i, f.q), divmod(j, f.q)
    sylvester = (-1) ** (a & c).bit_count()
    if f.kind == "hartley":
        angle = 2 * math.pi * (b * e % f.q) / f.q
        factor = math.cos(angle) + math.sin(angle)
    elif f.kind == "one":
        factor = 1.0
    elif f.kind == "paley1":
        factor = _conference(f.q - 1, b, e, corner=-1) + (b == e)
    else:
        core = _conference(f.q // 2 - 1, b // 2, e // 2, corner=1)
        plus, minus = ((1, 1), (1, -1)), ((1, -1), (-1, -1))
        factor = core * plus[b % 2][e % 2] + (b // 2 == e // 2) * minus[b % 2][e % 2]
    return sylvester * factor / math.sqrt(n)


def _conference(prime: int, i: int, j: int, corner: int) -> int:
    if i == 0 or j == 0:
        return 0 if i == j else (1 if i == 0 else corner)
    if i == j:
        return 0
    return 1 if any((x * x - (i - j)) % prime == 0 for x in range(prime)) else -1


# -- the matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "r", "q", "kind"),
    [
        (1, 1, 1, "one"),
        (4096, 4096, 1, "one"),
        (2, 2, 1, "one"),
        (3, 1, 3, "hartley"),
        (6, 2, 3, "hartley"),  # a Hadamard order is a multiple of 4
        (12, 1, 12, "paley1"),
        (20, 1, 20, "paley1"),
        (28, 1, 28, "paley2"),  # 27 = 3^3 is no prime
        (36, 1, 36, "paley2"),
        (52, 4, 13, "hartley"),  # neither 51 nor 25 is a prime
        (104, 1, 104, "paley1"),
        (1536, 128, 12, "paley1"),
        (1152, 32, 36, "paley2"),
        (4608, 128, 36, "paley2"),
        (3456, 32, 108, "paley1"),
        (6912, 64, 108, "paley1"),
        (11008, 256, 43, "hartley"),  # 172 is no Paley order
        (5120, 256, 20, "paley1"),
        (13824, 128, 108, "paley1"),
        (4099, 1, 4099, "hartley"),
    ],
)
def test_factors_of_the_sizes_that_occur(n: int, r: int, q: int, kind: str) -> None:
    assert hadamard.factors(n) == hadamard.Factors(r, q, kind)


def test_no_length_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        hadamard.factors(0)


@pytest.mark.parametrize("n", [1, 2, 8, 9, 12, 24, 26, 28, 36, 72, 60])
def test_every_entry_follows_the_definition(n: int) -> None:
    expected = [[_entry(n, i, j) for j in range(n)] for i in range(n)]
    torch.testing.assert_close(
        hadamard.matrix(n), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_golden_rows() -> None:
    """Literals, so that no change of a convention slips into files that are already written."""
    rows = (hadamard.matrix(12) * math.sqrt(12)).round().to(torch.int64)
    text = ["".join("-+"[int(v > 0)] for v in row) for row in rows[:3]]
    assert text == ["++++++++++++", "-+-+---+++-+", "-++-+---+++-"]
    rows = (hadamard.matrix(28) * math.sqrt(28)).round().to(torch.int64)
    text = ["".join("-+"[int(v > 0)] for v in row) for row in rows[:3]]
    assert text == [
        "+-++++++++++++++++++++++++++",
        "--+-+-+-+-+-+-+-+-+-+-+-+-+-",
        "+++-++--++++--------++++--++",
    ]
    third = [1, 1, 1], [1, 0.3660254037844386, -1.3660254037844386]
    torch.testing.assert_close(
        hadamard.matrix(3)[:2] * math.sqrt(3), torch.tensor(third, dtype=torch.float64)
    )


@pytest.mark.parametrize("n", [*SMALL, 1152])
def test_orthonormal(n: int) -> None:
    q = hadamard.matrix(n)
    assert (q @ q.T - torch.eye(n, dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.slow
def test_a_hadamard_factor_gives_entries_of_one_size() -> None:
    for n in (*SMALL, 1152, 3456):
        sizes = hadamard.matrix(n).abs() * math.sqrt(n)
        if hadamard.factors(n).kind == "hartley":
            assert sizes.max() <= math.sqrt(2) + 1e-12
        else:
            assert (sizes - 1).abs().max() < 1e-12, n


# -- the products ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*SMALL, 1152, 3456])
def test_apply_is_the_dense_product(n: int) -> None:
    x, q = _random(2, 3, n), hadamard.matrix(n)
    torch.testing.assert_close(hadamard.apply(x), x @ q.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(hadamard.inverse(x), x @ q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", LARGE)
def test_large_sizes_are_orthonormal_and_follow_the_definition(n: int) -> None:
    units = torch.zeros(4, n, dtype=torch.float64)
    picked = [0, 1, n // 3, n - 1]
    units[range(4), picked] = 1
    columns = hadamard.apply(units)  # rows: columns of Q
    torch.testing.assert_close(columns @ columns.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(hadamard.inverse(columns), units, rtol=0, atol=1e-12)
    for (k, j), i in itertools.product(enumerate(picked), (0, 1, 2, n // 2, n - 1)):
        assert math.isclose(float(columns[k, i]), _entry(n, i, j), abs_tol=1e-12), (i, j)


@pytest.mark.parametrize("n", LARGE)
def test_float32_round_trip_and_norm(n: int) -> None:
    x = _random(5, n, dtype=torch.float32)
    y = hadamard.apply(x)
    torch.testing.assert_close(hadamard.inverse(y), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x = (_random(4, 1152) * 3e4).clamp(-6e4, 6e4).to(dtype)  # partial sums overflow float16
    assert torch.equal(hadamard.apply(x), hadamard.apply(x.float()).to(dtype))
    assert hadamard.apply(x).dtype == dtype


@pytest.mark.parametrize("n", [8, 26, 28, 520, 1042])
def test_gradients(n: int) -> None:
    x = _random(2, n).requires_grad_()
    weight = _random(2, n, seed=1)
    (hadamard.apply(x) * weight).sum().backward()
    torch.testing.assert_close(x.grad, hadamard.inverse(weight), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(hadamard.inverse, _random(1, min(n, 28)).requires_grad_())


def test_the_cache_serves_training_after_inference() -> None:
    with torch.inference_mode():
        hadamard.apply(torch.ones(1, 76))
    x = torch.ones(1, 76, requires_grad=True)
    hadamard.apply(x).sum().backward()
    assert x.grad is not None


def test_modes_of_the_caller_change_nothing() -> None:
    x = _random(3, 44, dtype=torch.float32)
    with torch.device("meta"):  # as loaders of large models set it
        first, matrix, signs = hadamard.apply(x), hadamard.matrix(44), transform.signs(44, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        second = hadamard.apply(x)
    assert first.dtype == second.dtype == torch.float32
    assert torch.equal(first, second)
    torch.testing.assert_close(first.double(), x.double() @ matrix.T, rtol=0, atol=1e-5)
    assert torch.equal(signs, transform.signs(44, 0))
    assert hadamard.apply(torch.empty(2, 44, device="meta")).shape == (2, 44)


def test_the_same_bits_for_any_number_of_threads() -> None:
    x, threads, results = _random(300, 1152, dtype=torch.float32), torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(hadamard.apply(x))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_strided_and_empty_inputs() -> None:
    x = _random(12, 5)
    torch.testing.assert_close(hadamard.apply(x.T), x.T @ hadamard.matrix(12).T)
    assert hadamard.apply(torch.empty(0, 12)).shape == (0, 12)
    assert hadamard.apply(torch.ones(12)).shape == (12,)


# -- the randomised transform -------------------------------------------------------------------


def test_signs_are_deterministic_and_balanced() -> None:
    s = transform.signs(10_000, seed=7)
    assert s.dtype == torch.int8
    assert set(s.tolist()) == {-1, 1}
    assert abs(int(s.sum())) < 400  # four standard deviations
    assert torch.equal(s, transform.signs(10_000, seed=7))
    assert not torch.equal(s, transform.signs(10_000, seed=8))
    state = torch.get_rng_state()
    transform.signs(10, seed=0)
    assert torch.equal(state, torch.get_rng_state())


@given(st.lists(st.sampled_from([-1, 1]), min_size=1, max_size=70))
def test_signs_pack_to_one_bit_each(values: list[int]) -> None:
    s = torch.tensor(values, dtype=torch.int8)
    packed = transform.pack_signs(s)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [
        sum(1 << k for k, v in enumerate(values[i : i + 8]) if v < 0)
        for i in range(0, len(values), 8)
    ]
    back = transform.unpack_signs(packed, len(values))
    assert back.dtype == torch.int8
    assert torch.equal(back, s)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.booleans())
def test_forward_is_its_formula_and_inverts(m: int, n: int, rows: bool, cols: bool) -> None:
    w = _random(m, n)
    out = transform.signs(m, 1) if rows else None
    into = transform.signs(n, 2) if cols else None
    left = hadamard.matrix(m) * out if out is not None else torch.eye(m, dtype=torch.float64)
    right = hadamard.matrix(n) * into if into is not None else torch.eye(n, dtype=torch.float64)
    moved = transform.forward(w, out, into)
    torch.testing.assert_close(moved, left @ w @ right.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform.inverse(moved, out, into), w, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("m", "n"), [(48, 36), (43, 128), (10, 13)])
def test_transformed_weight_with_transformed_activations(m: int, n: int) -> None:
    w, x = _random(m, n, dtype=torch.float32), _random(6, n, dtype=torch.float32, seed=1)
    out, into = transform.signs(m, 3), transform.signs(n, 4)
    inner = transform.activations_in(x, into) @ transform.forward(w, out, into).T
    y = transform.activations_out(inner, out)
    torch.testing.assert_close(y, x @ w.T, rtol=0, atol=1e-4)


def test_hessian_keeps_the_output_error() -> None:
    x, error = _random(500, 28), _random(20, 28, seed=1)
    h, into, out = x.T @ x / 500, transform.signs(28, 5), transform.signs(20, 6)
    moved = transform.forward(error, out, into)
    before = torch.trace(error @ h @ error.T)
    after = torch.trace(moved @ transform.hessian(h, into) @ moved.T)
    torch.testing.assert_close(after, before)
    z = transform.activations_in(x, into)
    torch.testing.assert_close(transform.hessian(h, into), z.T @ z / 500)


@pytest.mark.parametrize(("m", "n"), [(256, 1152), (172, 688), (129, 1031)])
def test_outliers_spread(m: int, n: int) -> None:
    """QuIP#, lemma 3.1: afterwards the largest of m n entries is near sqrt(2 log(m n)) RMS."""
    w = _random(m, n) * 0.01
    w[:, 5] += 3.0  # an outlier column, an outlier row and single spikes
    w[7] -= 2.0
    w[range(40), range(40)] += 40.0

    def peak(x: Tensor) -> float:
        return float(x.abs().max() / x.square().mean().sqrt())

    moved = transform.forward(w, transform.signs(m, 1), transform.signs(n, 2))
    assert peak(w) > 20
    assert peak(moved) < 1.6 * math.sqrt(2 * math.log(m * n))
    # Without the signs, Q maps the constant column and row to spikes again.
    plain = hadamard.apply(hadamard.apply(w).T).T
    assert peak(plain) > 2 * peak(moved)
