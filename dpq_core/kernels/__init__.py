"""Nearest codewords and k-means passes: compiled (numba) on the CPU, torch elsewhere.

``reference`` is the plain oracle that both are tested against. Nothing heavy is imported before the
first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from dpq_core.errors import SpecError
from dpq_core.grouping import Grouping

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Lloyd", "assign", "check", "lloyd"]


class Lloyd(Protocol):
    """Repeated k-means passes over the same subvectors, float32 ``[G, d, P]``; see ``lloyd``."""

    def moments(self) -> Tensor:
        """Sums over the subvectors of each codebook, float64 ``[B, 2 d + 1]``.

        They are w x and w x^2 by coordinate, then w.
        """

    def step(self, codebooks: Tensor) -> tuple[int, Tensor]:
        """Assign to codebooks float32 ``[B, K, d]`` and add up the clusters.

        Returns:
            How many codes changed, and float64 ``[B, K, d + 1]``: sum w x and sum w over the
            members of each codeword (with weights ``[B, K, d + 2]``: also sum w^2).
        """

    def assign(self, codebooks: Tensor) -> int:
        """Assign to codebooks float32 ``[B, K, d]``; returns how many codes changed."""

    def result(self) -> Tensor:
        """The current codes, int32 ``[G, P]``."""


def assign(
    subvectors: Tensor, codebooks: Tensor, grouping: Grouping | None = None
) -> tuple[Tensor, Tensor]:
    """Code of every subvector: the index of its nearest codeword, the lowest of equally near ones.

    Args:
        subvectors: float32 ``[G, d, P]``, finite.
        codebooks: float32 ``[B, K, d]``.
        grouping: grouping of the subvectors, whose stages are ignored; None gives every group its
            own codebook.

    Returns:
        Codes int32 ``[G, P]`` and squared distances float32 ``[G, P]``, on the device of
        ``subvectors``.

    Raises:
        SpecError: shapes, dtypes or devices do not fit each other.
    """
    grouping = check(subvectors, codebooks.shape, grouping)
    if codebooks.dtype != torch.float32 or codebooks.device != subvectors.device:
        raise SpecError("codebooks must be float32 and on the device of the subvectors")
    if subvectors.device.type == "cpu":
        from dpq_core.kernels.cpu import nearest_and_sums as cpu

        return cpu.assign(subvectors.contiguous(), codebooks, grouping)
    from dpq_core.kernels import torch_path

    return torch_path.assign(subvectors, codebooks, grouping)


def lloyd(
    subvectors: Tensor,
    grouping: Grouping | None = None,
    *,
    K: int,
    weights: Tensor | None = None,
) -> Lloyd:
    """Prepare k-means passes over some subvectors.

    A padded last group that shares its codebook is assigned, but takes no part in the sums.

    Args:
        subvectors: float32 ``[G, d, P]``, finite.
        grouping: see ``assign``.
        K: codewords per codebook.
        weights: weight of each subvector in the sums, float32 ``[G, P]``; None for 1.

    Raises:
        SpecError: shapes or dtypes do not fit.
    """
    G, d, P = subvectors.shape
    codebooks = G if grouping is None else grouping.codebooks
    grouping = check(subvectors, (codebooks, K, d), grouping)
    if weights is not None:
        if weights.shape != (G, P):
            raise SpecError(f"weights must be [{G}, {P}], not {list(weights.shape)}")
        weights = weights.to(subvectors.device, torch.float32).contiguous()
    subvectors = subvectors.contiguous()
    if subvectors.device.type == "cpu":
        from dpq_core.kernels.cpu import nearest_and_sums as cpu

        return cpu.CPULloyd(subvectors, grouping, K=K, weights=weights)
    from dpq_core.kernels import torch_path

    return torch_path.TorchLloyd(subvectors, grouping, K=K, weights=weights)


def check(subvectors: Tensor, codebooks: tuple[int, ...], grouping: Grouping | None) -> Grouping:
    """Check that subvectors and codebooks fit a grouping; returns it.

    Args:
        subvectors: float32 ``[G, d, P]``.
        codebooks: shape of the codebooks, ``[B, K, d]``.
        grouping: None for a codebook per group.

    Raises:
        SpecError: a shape or dtype does not fit.
    """
    if subvectors.ndim != 3 or subvectors.dtype != torch.float32 or subvectors.numel() == 0:
        raise SpecError(
            f"subvectors must be float32 [G, d, P], not {subvectors.dtype} {list(subvectors.shape)}"
        )
    g = grouping or Grouping.of_subvectors(subvectors.shape)
    if tuple(subvectors.shape) != (g.groups, g.d, g.points):
        raise SpecError(
            f"subvectors must be [{g.groups}, {g.d}, {g.points}], not {list(subvectors.shape)}"
        )
    if len(codebooks) != 3 or codebooks[1] < 1 or codebooks[::2] != (g.codebooks, g.d):
        raise SpecError(
            f"{g.groups} groups, {g.groups_per_codebook} per codebook, need codebooks "
            f"[{g.codebooks}, K, {g.d}], not {list(codebooks)}"
        )
    return g
