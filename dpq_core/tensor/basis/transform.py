"""Randomised Hadamard transform (RHT) of a matrix: exactly invertible incoherence processing.

``W~ = Q_m S_V W S_U Q_n^T`` with random sign diagonals S and the orthonormal Q of
``tensor.basis.hadamard`` (QuIP#, arXiv 2402.04396, section 3; docs/algorithms.md#rotation). At
inference the weight stays transformed and the activations are transformed instead:
``y = S_V Q_m^T (W~ (Q_n S_U x))``. A side whose signs are None is left as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_core.tensor import packing
from dpq_core.tensor.basis import hadamard


def signs(n: int, seed: int) -> Tensor:
    """Random signs, int8 ``[n]`` of -1 and +1, on the CPU; the same seed gives the same signs."""
    generator = torch.Generator("cpu").manual_seed(seed)
    bits = torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8, device="cpu")
    return bits * 2 - 1


def pack_signs(values: Tensor) -> Tensor:
    """Pack signs, int8 ``[n]``, to uint8 ``[ceil(n / 8)]``: bit i is 1 where sign i is -1."""
    return packing.pack((values < 0)[None], 1)[0]


def unpack_signs(packed: Tensor, n: int) -> Tensor:
    """Unpack signs to int8 ``[n]``: the inverse of ``pack_signs``."""
    return (1 - 2 * packing.unpack(packed[None], 1, n)[0]).to(torch.int8)


def forward(weight: Tensor, signs_out: Tensor | None, signs_in: Tensor | None) -> Tensor:
    """Transform a weight: ``W~ = Q_m S_V W S_U Q_n^T``.

    Args:
        weight: W, ``[m, n]``; float16 and bfloat16 are better widened by the caller, for the
            result is rounded to this dtype.
        signs_out: S_V, ``[m]``; None: the rows stay as they are.
        signs_in: S_U, ``[n]``; None: the columns stay as they are.

    Returns:
        ``[m, n]`` in the dtype of ``weight``; its Frobenius norm is that of W.
    """
    if signs_in is not None:
        weight = activations_in(weight, signs_in)
    if signs_out is not None:
        weight = activations_in(weight.T, signs_out).T
    return weight


def inverse(transformed: Tensor, signs_out: Tensor | None, signs_in: Tensor | None) -> Tensor:
    """Undo ``forward`` up to rounding: ``W = S_V Q_m^T W~ Q_n S_U``."""
    if signs_in is not None:
        transformed = activations_out(transformed, signs_in)
    if signs_out is not None:
        transformed = activations_out(transformed.T, signs_out).T
    return transformed


def activations_in(x: Tensor, signs_in: Tensor) -> Tensor:
    """Transform inputs ``[..., n]`` for a transformed weight: ``Q_n S_U x`` of every x."""
    return hadamard.apply(x * signs_in.to(x))


def activations_out(y: Tensor, signs_out: Tensor) -> Tensor:
    """Transform outputs ``[..., m]`` of a transformed weight back: ``S_V Q_m^T y`` of every y."""
    return hadamard.inverse(y) * signs_out.to(y)


def hessian(second_moment: Tensor, signs_in: Tensor) -> Tensor:
    """Second moment ``[n, n]`` of the transformed inputs: ``H~ = Q_n S_U H S_U Q_n^T``."""
    return forward(second_moment, signs_in, signs_in)
