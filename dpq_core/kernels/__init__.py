"""Nearest-codeword kernels, chosen by device: compiled (numba) on the CPU, torch elsewhere.

``reference`` is the plain oracle that both are tested against. Nothing heavy is imported before the
first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from dpq_core.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Lloyd", "assign", "check", "lloyd"]


class Lloyd(Protocol):
    """Repeated passes over the same points float32 [G, d, N]; see ``lloyd``."""

    def moments(self) -> Tensor:
        """float64 [C, 2 d + 1] per codebook: sum w x, sum w x^2 (per coordinate), sum w."""

    def step(self, codebooks: Tensor) -> tuple[int, Tensor]:
        """Assign to float32 [C, K, d] and add up the clusters.

        Returns:
            How many codes changed, and float64 [C, K, d + 1]: sum w x and sum w over the members
            of each codeword (with weights [C, K, d + 2]: also sum w^2).
        """

    def assign(self, codebooks: Tensor) -> int:
        """Assign to float32 [C, K, d]; returns how many codes changed."""

    def result(self) -> Tensor:
        """The current codes, int32 [G, N]."""


def assign(
    points: Tensor, codebooks: Tensor, *, tie: int = 1, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Nearest codeword of every point; ties in distance go to the lowest index.

    Args:
        points: float32 [G, d, N], finite.
        codebooks: float32 [C, K, d], C = ceil(G / tie); group j uses codebook j // tie.
        tie: adjacent groups that share a codebook.
        pad: coordinates at the end of the last group that do not count.

    Returns:
        Codes int32 [G, N] and squared distances float32 [G, N], on the device of ``points``.

    Raises:
        SpecError: shapes, dtypes or devices do not fit each other.
    """
    check(points, codebooks.shape, tie, pad)
    if codebooks.dtype != torch.float32 or codebooks.device != points.device:
        raise SpecError("codebooks must be float32 and on the device of the points")
    if points.device.type == "cpu":
        from dpq_core.kernels.cpu import nearest_and_sums as cpu

        return cpu.assign(points.contiguous(), codebooks, tie=tie, pad=pad)
    from dpq_core.kernels import torch_path

    return torch_path.assign(points, codebooks, tie=tie, pad=pad)


def lloyd(
    points: Tensor, *, K: int, tie: int = 1, pad: int = 0, weights: Tensor | None = None
) -> Lloyd:
    """The k-means passes for these points; arguments as in ``assign``, weights float32 [G, N].

    A padded last group that shares its codebook is assigned, but takes no part in the sums.

    Raises:
        SpecError: shapes or dtypes do not fit.
    """
    G, d, N = points.shape
    check(points, (-(-G // tie), K, d), tie, pad)
    if weights is not None:
        if weights.shape != (G, N):
            raise SpecError(f"weights must be [{G}, {N}], not {list(weights.shape)}")
        weights = weights.to(points.device, torch.float32).contiguous()
    points = points.contiguous()
    if points.device.type == "cpu":
        from dpq_core.kernels.cpu import nearest_and_sums as cpu

        return cpu.CPULloyd(points, K=K, tie=tie, pad=pad, weights=weights)
    from dpq_core.kernels import torch_path

    return torch_path.TorchLloyd(points, K=K, tie=tie, pad=pad, weights=weights)


def check(points: Tensor, books: tuple[int, ...], tie: int, pad: int) -> None:
    """Raise SpecError unless points and codebooks (their shape), tie and pad fit each other."""
    if points.ndim != 3 or points.dtype != torch.float32 or points.numel() == 0:
        raise SpecError(
            f"points must be float32 [groups, d, points], not {points.dtype} {list(points.shape)}"
        )
    G, d, _ = points.shape
    if tie < 1 or not 0 <= pad < d:
        raise SpecError(f"tie must be at least 1 and pad 0..{d - 1}, not {tie} and {pad}")
    if len(books) != 3 or books[0] != -(-G // tie) or books[1] < 1 or books[2] != d:
        raise SpecError(
            f"{G} groups with tie={tie} need codebooks [{-(-G // tie)}, K, {d}], not {list(books)}"
        )
