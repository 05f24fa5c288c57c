"""Matching of a file's Gaussians to the original's, across reordering and pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dpq_gaussian.scene import Scene

SAMPLE = 1 << 15
"""Gaussians that are matched, evenly spread over the file."""

NEIGHBOURS = 8
"""Nearest Gaussians of the original by position, among which the other attributes decide."""

LEAST_KEPT = 0.5
"""Share of the original's Gaussians that a pruned file has at least, to be comparable."""

_FAR = 3.0  # standard deviations of its longest axis
_NEAR = 0.01  # of the scene's radius: no farther is near, however small the Gaussian
_LOST = 0.05  # share of Gaussians that may be far from all of the original's
_ROUNDS = 2
_ENOUGH = 30.0  # of the usual squares: what a file has clipped is farther off and tells nothing
_LEAST = 1e-30  # square of an error that is zero
_CELLS = 16  # per axis, of the grid of `overlap`

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Match:
    """Pairs of matching Gaussians in a file and in its original.

    Attributes:
        rows: indices in the file ``[s]``.
        originals: index of each in the original ``[s]``.
        problem: why the two cannot be compared one by one; empty if they can.
    """

    rows: Rows
    originals: Rows
    problem: str = ""


def match(scene: Scene, original: Scene) -> Match:
    """Matches a sample of a scene's Gaussians to those of the original."""
    count, before = len(scene), len(original)
    nothing = np.zeros(0, np.int64)
    if not LEAST_KEPT * before <= count <= before:
        return Match(
            rows=nothing, originals=nothing, problem=f"{count:,} Gaussians against {before:,}"
        )
    rows = np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64)
    part = scene.take(rows)
    near, squares = _nearest(part.positions, original.positions)
    best = _likeliest_neighbour(
        squares, np.square(_features(part)[:, None] - _features(original)[near])
    )
    each = np.arange(len(rows))
    originals, distance = near[each, best], np.sqrt(squares[each, best])
    reach = _FAR * np.exp(original.log_scales[originals].max(axis=1).astype(np.float64))
    lost = float((distance > np.maximum(reach, _NEAR * _radius(original))).mean())
    problem = f"{lost:.0%} of its Gaussians are where the original has none"
    return Match(rows=rows, originals=originals, problem=problem if lost > _LOST else "")


def overlap(scene: Scene, original: Scene) -> float:
    """Share of the Gaussians, 0 to 1, that lie alike in a coarse grid around the original."""
    low, high = np.quantile(original.positions.astype(np.float64), (0.01, 0.99), axis=0)

    def share(positions: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        cells = (positions - low) / np.maximum(high - low, 1e-12) * _CELLS
        index = np.clip(np.floor(cells), -1, _CELLS).astype(np.int64) + 1
        side = _CELLS + 2
        flat = (index[:, 0] * side + index[:, 1]) * side + index[:, 2]
        return np.asarray(np.bincount(flat, minlength=side**3) / len(positions))

    return float(np.minimum(share(scene.positions), share(original.positions)).sum())


def _radius(scene: Scene) -> float:
    positions = scene.positions.astype(np.float64)
    middle = np.median(positions, axis=0)
    return float(np.median(np.linalg.norm(positions - middle, axis=1)))


def _features(scene: Scene) -> npt.NDArray[np.float32]:
    """Opacity, sizes and colour, which tell Gaussians at one place apart: float32 ``[N, 7]``."""
    logits = np.clip(scene.opacity_logits, -30, 30)
    opacity = (1 / (1 + np.exp(-logits)))[:, None]
    sizes = np.sort(scene.log_scales, axis=1)
    return np.concatenate([opacity, sizes, scene.sh_dc], axis=1).astype(np.float32)


def _likeliest_neighbour(squares: npt.NDArray[np.float64], others: npt.NDArray[np.float32]) -> Rows:
    """Index of the best matching neighbour of each Gaussian ``[s]``.

    Args:
        squares: squared distances ``[s, k]``.
        others: squared differences of the other features ``[s, k, f]``.
    """
    # How exactly a file keeps positions and the other features is not known: it is taken from the
    # nearest candidates first, then from the likeliest.
    best = np.zeros(len(squares), np.int64)
    for _ in range(_ROUNDS):
        each = np.arange(len(squares))
        place = np.median(squares[each, best]) + _LEAST
        feature = np.median(others[each, best], axis=0).astype(np.float64) + _LEAST
        cost = squares / place + np.minimum(others / feature, _ENOUGH).sum(axis=2)
        best = cost.argmin(axis=1)
    return best


def _nearest(
    queries: npt.NDArray[np.float32], places: npt.NDArray[np.float32]
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """The nearest places of each query, nearest first: indices and squared distances ``[s, k]``."""
    spread = np.quantile(places, (0.05, 0.95), axis=0)
    axis = int((spread[1] - spread[0]).argmax())  # along it, few places are as near as the nearest
    order = np.argsort(places[:, axis], kind="stable")
    ordered = np.ascontiguousarray(np.roll(places[order], -axis, axis=1), dtype=np.float64)
    asked = np.ascontiguousarray(np.roll(queries, -axis, axis=1), dtype=np.float64)
    starts = np.searchsorted(ordered[:, 0], asked[:, 0])
    width = min(NEIGHBOURS, len(places))
    neighbours = np.zeros((len(queries), width), np.int64)
    squares = np.full((len(queries), width), np.inf)
    _search(ordered, asked, starts, neighbours, squares)
    return order[neighbours], squares


@numba.njit(cache=True, nogil=True)
def _search(places: Any, queries: Any, starts: Any, neighbours: Any, squares: Any) -> None:
    """Walk away from each query along the sorted axis until nothing nearer can come.

    Places [N, 3] ascend in their first column; neighbours and squares are [s, k], nearest first.
    """
    count, width = len(places), neighbours.shape[1]
    for i in range(len(queries)):
        x, y, z = queries[i, 0], queries[i, 1], queries[i, 2]
        left, right = starts[i] - 1, starts[i]
        while left >= 0 or right < count:
            before = x - places[left, 0] if left >= 0 else np.inf
            after = places[right, 0] - x if right < count else np.inf
            if min(before, after) ** 2 > squares[i, width - 1]:
                break
            if before < after:
                at = left
                left -= 1
            else:
                at = right
                right += 1
            dx, dy, dz = places[at, 0] - x, places[at, 1] - y, places[at, 2] - z
            square = dx * dx + dy * dy + dz * dz
            slot = width
            while slot > 0 and square < squares[i, slot - 1]:
                slot -= 1
            for k in range(width - 1, slot, -1):
                squares[i, k] = squares[i, k - 1]
                neighbours[i, k] = neighbours[i, k - 1]
            if slot < width:
                squares[i, slot] = square
                neighbours[i, slot] = at
