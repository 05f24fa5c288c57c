"""The orthonormal transform Q_n, with a fast product for every length n >= 1.

Rotating a weight by random signs and Q_n spreads its outliers over all entries ("incoherence",
QuIP#, arXiv 2402.04396, section 3; docs/algorithms.md#rotation). The definition is complete, so
that a file needs to store the signs only. Indices count from 0; n = 2^p m with m odd::

    Q_n = n^(-1/2) (H_r (x) F_q),   n = r q,
    Q_n[a q + b, c q + e] = n^(-1/2) H_r[a, c] F_q[b, e]

* H_r, r a power of two, is Sylvester's matrix: H_r[a, c] = (-1)^popcount(a AND c).
* F_q is, with chi(x) = 0 for x = 0 mod l, 1 for another square modulo the prime l, else -1:

  - m = 1: q = 1, F_1 = [1].
  - Otherwise q is the smallest of 4 m, 8 m, 16 m, ... that divides n, is at most 256, and is a
    Paley order; where it is both kinds of order, it counts as Paley I.
    *Paley I*: l = q - 1 is a prime, l = 3 mod 4. F = I + S, where S[0, 0] = 0, S[0, j] = 1,
    S[i, 0] = -1 and S[i, j] = chi(i - j) for i, j >= 1.
    *Paley II*: l = q / 2 - 1 is a prime, l = 1 mod 4.
    F = C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]], where C is as S, but C[i, 0] = 1.
  - Where there is no such q: q = m and F_q is Hartley's matrix, F[i, j] = cos t + sin t with
    t = 2 pi i j / m.

With a Hadamard factor every entry of Q_n is +-n^(-1/2). Where none is known, one could take a
random orthogonal factor. Hartley's is taken instead: it needs no storage and no generator, an FFT
applies it at any size, and its entries are bounded by sqrt(2 / n), while the largest entry of a
random orthogonal matrix grows as sqrt(2 log(n) / n). A row of Q_n times random signs times x is a
sum of independent terms of variance Q[i, j]^2 x[j]^2, at most 2 |x|^2 / n in all (1 |x|^2 / n for
Hadamard): by Hoeffding the same tails as a Hadamard matrix gives, at worst sqrt(2) wider.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

MAX_PALEY = 256
"""Order of a Paley factor at most: a dense factor costs q multiplications per value."""

_MAX_DENSE = 512
"""Order of a Hartley factor from above which it is applied by an FFT."""

_FOLD = 64
"""Order up to which Sylvester factors are multiplied into the dense one: one product, not six
passes."""


@dataclass(frozen=True)
class Factors:
    """The factorisation n = r q of a length, and the kind of the q x q matrix F_q.

    Attributes:
        r: order of the Sylvester factor, a power of two.
        q: order of the dense factor.
        kind: ``one``, ``paley1``, ``paley2`` or ``hartley``.
    """

    r: int
    q: int
    kind: str


@cache
def factors(n: int) -> Factors:
    """The factors of Q_n, by the rules of this module's docstring.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"a transform has a length of at least 1, not {n}")
    odd = n // (n & -n)
    if odd == 1:
        return Factors(n, 1, "one")
    q = 4 * odd
    while q <= MAX_PALEY and n % q == 0:
        if _is_prime(q - 1):  # q is a multiple of 4, so that q - 1 = 3 mod 4
            return Factors(n // q, q, "paley1")
        if (q // 2 - 1) % 4 == 1 and _is_prime(q // 2 - 1):
            return Factors(n // q, q, "paley2")
        q *= 2
    return Factors(n // odd, odd, "hartley")


def matrix(n: int) -> Tensor:
    """Q_n as a dense matrix, float64 ``[n, n]``: the definition, and the oracle of ``apply``."""
    f = factors(n)
    with torch.device("cpu"):
        return torch.kron(_sylvester(f.r), _dense_factor(f.q, f.kind)) / math.sqrt(n)


def apply(x: Tensor) -> Tensor:
    """Multiply along the last axis, ``x Q_n^T``: every row vector x becomes Q_n x.

    Args:
        x: ``[..., n]``, any floating dtype; float16 and bfloat16 are computed in float32.

    Returns:
        ``[..., n]`` in the dtype of x; differentiable. O(n log n + n q) per row.
    """
    return _product(x, transpose=True)


def inverse(x: Tensor) -> Tensor:
    """Undo ``apply``: ``x Q_n`` along the last axis, with the same cost and dtypes."""
    return _product(x, transpose=False)


def _product(x: Tensor, *, transpose: bool) -> Tensor:
    """The product ``x Q_n^T`` or, without ``transpose``, ``x Q_n`` along the last axis."""
    n = x.shape[-1]
    f = factors(n)
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    if f.kind == "hartley" and f.q > _MAX_DENSE:
        dense, spectrum = f.q, torch.fft.fft(wide.reshape(*x.shape[:-1], f.r, f.q))
        y = spectrum.real - spectrum.imag  # symmetric: its own transpose
    else:
        folded = min(f.r, max(1, _FOLD // f.q))
        folded = 1 << (folded.bit_length() - 1)
        dense = folded * f.q
        right = _right_factor(folded, f.q, f.kind, transpose, wide.dtype, wide.device)
        with _no_autocast(x.device):  # else mixed precision would round the factor's product
            y = wide.reshape(*x.shape[:-1], n // dense, dense) @ right
    y = _butterflies(y.reshape(-1, n), dense).reshape(x.shape) * (1 / math.sqrt(n))
    return y.to(x.dtype)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which products keep their dtype."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _butterflies(y: Tensor, width: int) -> Tensor:
    """Multiply rows ``[rows, n]`` by H_{n / width} (x) I_width, one level after the other."""
    rows, n = y.shape
    while width < n:
        pair = y.view(rows, n // (2 * width), 2, width)
        low, high = pair[:, :, 0], pair[:, :, 1]
        y = torch.stack((low + high, low - high), dim=2).view(rows, n)
        width *= 2
    return y


@cache
def _right_factor(
    folded: int, q: int, kind: str, transpose: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrix H_folded (x) F_q, or its transpose, for a product from the right."""
    # The cache outlives the modes of its first caller.
    with torch.inference_mode(False), torch.device("cpu"):
        dense = torch.kron(_sylvester(folded), _dense_factor(q, kind))
        return (dense.T if transpose else dense).contiguous().to(device, dtype)


def _dense_factor(q: int, kind: str) -> Tensor:
    """The matrix F_q before normalisation, float64 ``[q, q]``."""
    if kind == "one":
        return torch.ones(1, 1, dtype=torch.float64)
    if kind == "paley1":
        return _conference(q - 1, corner=-1) + torch.eye(q, dtype=torch.float64)
    if kind == "paley2":
        plus = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
        minus = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
        core = _conference(q // 2 - 1, corner=1)
        return torch.kron(core, plus) + torch.kron(torch.eye(q // 2, dtype=torch.float64), minus)
    index = torch.arange(q, dtype=torch.int64)
    angle = (index[:, None] * index % q).double() * (2 * math.pi / q)
    return angle.cos() + angle.sin()


def _conference(prime: int, *, corner: int) -> Tensor:
    """The matrix S (``corner`` -1) or C (``corner`` 1) of Paley, float64 ``[prime+1, prime+1]``."""
    chi = torch.full((prime,), -1.0, dtype=torch.float64)
    chi[torch.arange(prime) ** 2 % prime] = 1
    chi[0] = 0
    index = torch.arange(prime)
    out = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    out[0, 0] = 0
    out[1:, 0] = corner
    out[1:, 1:] = chi[(index[:, None] - index) % prime]
    return out


def _sylvester(r: int) -> Tensor:
    """Sylvester's Hadamard matrix H_r, float64 ``[r, r]``."""
    out = torch.ones(1, 1, dtype=torch.float64)
    while out.shape[0] < r:
        out = torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=torch.float64), out)
    return out


def _is_prime(number: int) -> bool:
    """Whether a number is prime, by trial division."""
    return number > 1 and all(number % k for k in range(2, math.isqrt(number) + 1))
