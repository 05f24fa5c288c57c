"""Positions of Gaussians far outside of the scene, which are stored exactly, beside the octree.

One Gaussian at a distance of a million times the scene's size would take away 20 of the octree's 32
levels from all others. So the cube of the octree is put around the others, and such a position is
kept as it is (FORMAT.md, G12).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpq_core.errors import ArtifactError
from dpq_gaussian.scene import Scene
from dpq_gaussian.scene.extent import extent_of

RADII = 1024.0
"""Gaussians farther away than so many radii of the scene are outliers, where the whole scene is
larger than that: 21 levels of the octree are left for the radius then."""

_RECORD = np.dtype([("index", "<u4"), ("position", "<f4", 3)])


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Exact positions of single Gaussians.

    Attributes:
        indices: int64 ``[k]``, ascending, in the order of the file.
        positions: float32 ``[k, 3]``.
    """

    indices: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Number of outliers."""
        return len(self.indices)

    def restore(self, chunk: Scene, first: int) -> Scene:
        """Puts the outliers of a chunk, whose first Gaussian has the index ``first``, in place."""
        begin, end = np.searchsorted(self.indices, (first, first + len(chunk)))
        if begin < end:
            chunk.positions[self.indices[begin:end] - first] = self.positions[begin:end]
        return chunk

    def to_bytes(self) -> bytes:
        """The stream as the file holds it."""
        records = np.empty(len(self), _RECORD)
        records["index"] = np.diff(self.indices, prepend=0)
        records["position"] = self.positions
        return zlib.compress(records.tobytes(), 9) if len(self) else b""


NO_OUTLIERS = Outliers(indices=np.zeros(0, np.int64), positions=np.zeros((0, 3), np.float32))


def outliers_in_order(
    positions: npt.NDArray[np.float32],
    order: npt.NDArray[np.int64],
    outside: npt.NDArray[np.int64],
) -> Outliers:
    """Outliers of a scene that is coded in another order.

    Args:
        positions: of the scene ``[n, 3]``.
        order: indices into it in the order of the file ``[n]``.
        outside: indices into it of the outliers.
    """
    if not len(outside):
        return NO_OUTLIERS
    far = np.zeros(len(positions), dtype=bool)
    far[outside] = True
    indices = np.flatnonzero(far[order])
    return Outliers(indices=indices, positions=positions[order[indices]])


def outliers_from_bytes(data: bytes | memoryview, count: int, items: int, where: str) -> Outliers:
    """Reads the stream of ``count`` outliers among ``items`` Gaussians.

    Raises:
        ArtifactError: the stream is damaged, or an index or position impossible.
    """
    if not 0 < count <= items:
        raise ArtifactError(f"{where}: {count} outliers among {items} Gaussians")
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(bytes(data), count * _RECORD.itemsize + 1)
    except zlib.error as error:
        raise ArtifactError(f"{where}: damaged ({error})") from None
    if len(content) != count * _RECORD.itemsize or not unpacker.eof:
        raise ArtifactError(f"{where}: does not hold {count} outliers")
    records = np.frombuffer(content, _RECORD)
    indices = np.cumsum(records["index"], dtype=np.int64)
    positions = np.array(records["position"], np.float32)
    if (
        (np.diff(indices) < 1).any()
        or int(indices[-1]) >= items
        or not np.isfinite(positions).all()
    ):
        raise ArtifactError(f"{where}: an impossible outlier")
    return Outliers(indices=indices, positions=positions)


def bounding_cube(positions: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], float]:
    """Lower corner and side, above 0, of the smallest cube around all positions."""
    corner = positions.min(axis=0).astype(np.float64)
    side = float((positions.max(axis=0) - corner).max())
    return corner, max(side, float(np.abs(corner).max()) * 2.0**-23, 1e-30)


def robust_cube(
    positions: npt.NDArray[np.float32], log_scales: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], float, npt.NDArray[np.int64]]:
    """Lower corner and side of the octree's cube, and indices of the positions left outside.

    That is the cube around all positions, unless its side is more than 2 x RADII times the radius
    that holds 98 % of them.

    Args:
        positions: float32 ``[N, 3]``, finite.
        log_scales: of the Gaussians or a sample of them ``[n, 3]``.
    """
    corner, side = bounding_cube(positions)
    extent = extent_of(positions, log_scales)
    if side <= 2 * RADII * extent.radius:
        return corner, side, np.zeros(0, np.int64)
    outside = extent.beyond(positions, RADII)
    corner, side = bounding_cube(positions[~outside])
    return corner, side, np.flatnonzero(outside)
