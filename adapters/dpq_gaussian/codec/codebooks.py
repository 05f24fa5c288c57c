"""Product quantization of spherical harmonics, the alternative to transform coding.

All harmonics are one tensor ``[N, 3, M]`` (channels, coefficients) that ``Partition`` cuts as it
cuts a convolution: with ``conv_layout=channel`` the 3 M numbers of a Gaussian are ordered by
coefficient, then R, G, B, so that subspaces follow the bands (d = 9 begins with the first band);
with ``spatial`` they are ordered by channel (d = M is one subspace for each of R, G, B).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpq_core import kernels
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.methods.codebooks.kmeans import kmeans
from dpq_core.methods.quantize import tensor_seed
from dpq_core.spec import QuantSpec
from dpq_core.tensor.partition import Layout, Partition
from dpq_gaussian.codec.harmonics import principal_axes
from dpq_gaussian.scene import Scene

FloatArray = npt.NDArray[np.float32]

_SAMPLE = 1 << 18
"""Gaussians that codebooks are learned from, at most."""

_LEAST = 2.0**-11
"""Weight of what is hardly seen: that of the lowest class of importance (policy.py)."""

_LARGEST = 1000.0
"""Coefficients beyond this are moved to it, as those of colour are."""


def partition(points: int, coefficients: int, spec: QuantSpec) -> Partition:
    """How the harmonics of ``points`` Gaussians are cut.

    Raises:
        SpecError: the spec does not suit harmonics.
    """
    fixed = {"row_scale": False, "orientation": "input", "codebook_dtype": "float16"}
    for name, value in fixed.items():
        if getattr(spec, name) != value:
            raise SpecError(f"harmonics need {name}={str(value).lower()}")
    if spec.scope == "auto" or spec.d > 3 * coefficients:
        raise SpecError(
            f"harmonics of {3 * coefficients} numbers need d up to that, and a scope of subspace, "
            "tensor or a number of codebooks"
        )
    return Partition.of((points, 3, coefficients), Layout.CONV, spec)


def learn(
    scene: Scene, order: npt.NDArray[np.int64], importance: FloatArray, spec: QuantSpec
) -> tuple[QuantSpec, FloatArray]:
    """Learns codebooks ``[C, K, d]``; also returns the spec with d and K fitted to the scene.

    An error counts by the square of the amplitude with which it is seen. Codewords are rounded to
    float16, and ordered along their principal axis: near codes are alike, and the coder's running
    mean can follow them.

    Args:
        scene: with harmonics.
        order: indices of the Gaussians to code ``[n]``.
        importance: amplitude with which each of them is seen ``[n]``.
        spec: as the user gave it.

    Raises:
        SpecError: the spec does not suit harmonics.
    """
    m = scene.sh_rest.shape[1]
    spec = spec.replace(d=min(spec.d, 3 * m))
    spec = spec.replace(kmeans=spec.kmeans.resolved(spec.d, spec.K))
    rows, weights = _sampled(importance)
    cut = partition(len(rows), m, spec)
    points = _subvectors(scene.sh_rest[order[rows]], cut)
    result = kmeans(
        points,
        cut,
        K=cut.K,
        spec=spec.kmeans,
        seed=tensor_seed(spec.seed, "harmonics"),
        weights=torch.from_numpy(weights).expand(cut.groups, -1),
    )
    books = []
    for book in result.codebooks.numpy().astype(np.float64):
        axis = principal_axes(book - book.mean(axis=0), np.ones(len(book)))[0]
        books.append(book[np.argsort(book @ axis, kind="stable")])
    return spec.replace(K=cut.K), np.stack(books).astype(np.float16).astype(np.float32)


def _sampled(importance: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Rows to learn from and their weights: all, or _SAMPLE systematic draws by weight."""
    weights = np.maximum(np.square(importance.astype(np.float64)), _LEAST)
    if len(weights) <= _SAMPLE:
        return np.arange(len(weights)), weights.astype(np.float32)
    share = np.cumsum(weights)
    draws = (np.arange(_SAMPLE) + 0.5) * (share[-1] / _SAMPLE)
    picked = np.minimum(np.searchsorted(share, draws), len(weights) - 1)
    rows, counts = np.unique(picked, return_counts=True)
    return rows, counts.astype(np.float32)


def _subvectors(sh_rest: FloatArray, cut: Partition) -> Tensor:
    """Harmonics ``[n, M, 3]`` as the engine's subvectors ``[G, d, n]``."""
    limited = np.clip(sh_rest, -_LARGEST, _LARGEST).swapaxes(1, 2)
    tensor = torch.from_numpy(np.ascontiguousarray(limited, np.float32))
    return cut.to_subvectors(cut.to_matrix(tensor))


def assign(sh_rest: FloatArray, books: FloatArray, spec: QuantSpec) -> npt.NDArray[np.int32]:
    """The nearest codewords ``[G, n]`` of harmonics ``[n, M, 3]``.

    Args:
        sh_rest: harmonics of one chunk.
        books: ``[C, K, d]``.
        spec: as ``learn`` returned it.
    """
    cut = partition(len(sh_rest), sh_rest.shape[1], spec)
    points = _subvectors(sh_rest, cut)
    codes = kernels.assign(points, torch.from_numpy(books), cut)[0]
    return np.asarray(codes.numpy(), np.int32)


def restore(
    codes: npt.NDArray[np.int32], books: FloatArray, coefficients: int, spec: QuantSpec
) -> FloatArray:
    """Harmonics float32 ``[n, 3 M]``, by coefficient, then R, G, B; the inverse of ``assign``.

    Args:
        codes: ``[G, n]``, below K.
        books: ``[B, K, d]``.
        coefficients: M.
        spec: product quantization of the file.
    """
    n = codes.shape[1]
    cut = partition(n, coefficients, spec)
    numbers = np.empty((n, cut.groups * cut.d), np.float32)
    for group in range(cut.groups):
        place = slice(group * cut.d, (group + 1) * cut.d)
        numbers[:, place] = books[group // cut.groups_per_codebook][codes[group]]
    matrix = torch.from_numpy(numbers[:, : cut.cols])
    by_channel = cut.from_matrix(matrix).numpy()  # [n, 3, M]
    return np.ascontiguousarray(by_channel.swapaxes(1, 2)).reshape(n, -1)


def shape(coefficients: int, spec: QuantSpec) -> tuple[int, int, int]:
    """The shape ``(C, K, d)`` of the codebooks of a file.

    Raises:
        SpecError: the spec does not suit harmonics.
    """
    return partition(1, coefficients, spec).codebooks, spec.K, spec.d


def to_bytes(books: FloatArray) -> bytes:
    """Codebooks ``[B, K, d]`` as float16, little-endian: all lower bytes, then all upper ones."""
    halves = books.astype("<f2").reshape(-1, 1).view(np.uint8)
    return halves.T.tobytes()


def from_bytes(data: bytes, shape: tuple[int, int, int], where: str) -> FloatArray:
    """The inverse of ``to_bytes``, as float32.

    Raises:
        ArtifactError: a number is NaN or infinite.
    """
    halves = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(2, -1).T).view("<f2")
    books = halves.reshape(shape).astype(np.float32)
    if not np.isfinite(books).all():
        raise ArtifactError(f"{where}: the codebooks hold NaN or infinite values")
    return books
