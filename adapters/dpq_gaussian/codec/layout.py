"""What is in a scene file: its numbers (``Parameters``) and its streams, with the coding of each.

Both the encoder and the decoder follow this module; FORMAT.md describes it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dpq_core.spec import QuantSpec
from dpq_gaussian.codec.quantities import FINEST, UNIT, exponents
from dpq_gaussian.policy import CLASSES

CODEC_VERSION = 1

CHUNK = 65_536
"""Gaussians that are decoded together."""

STREAMS: Mapping[str, tuple[str, ...]] = {
    "importance": ("class",),
    "scales": ("large", "middle", "small"),
    "rotations": ("u", "v", "spin"),
    "opacity": ("logit",),
    "positions": ("parting",),
    "color": ("first", "second", "third"),
    "harmonics": ("count", "value"),
}
"""Stream of the file -> the sequences of symbols in each of its chunks; for ``harmonics`` see also
``streams_of``."""

BINS: Mapping[str, int] = {
    "class": 16,
    "large": 12,
    "middle": 6,
    "small": 6,
    "u": 1,
    "v": 1,
    "spin": 1,
    "logit": 8,
    "parting": 16,
    "first": 16,
    "second": 10,
    "third": 10,
    "count": 8,
    "value": 1,
}
"""Bins of the running mean, which follows the level of a sequence along the order."""

RANK_BINS = np.searchsorted([1, 2, 3, 4, 6, 8, 12, 16, 24], np.arange(64), side="right")
RANK_GROUPS = int(RANK_BINS.max()) + 1

LARGEST_OFFSET = 64
"""Of the exponents of rotation grids; beyond ``FINEST`` they change nothing."""

FOLLOWED_K = 1024
"""Codes of codebooks up to this size have 8 bins; of larger ones, bins cost more than they save."""

Ints = npt.NDArray[np.integer[Any]]


def streams_of(parameters: Parameters) -> dict[str, tuple[str, ...]]:
    """The streams of a file and their sequences: its harmonics may be missing, or be codes."""
    streams = dict(STREAMS)
    if not parameters.coefficients:
        del streams["harmonics"]
    elif parameters.harmonic_spec is not None:
        groups = -(-3 * parameters.coefficients // parameters.harmonic_spec.d)
        streams["harmonics"] = tuple(f"code{group}" for group in range(groups))
    return streams


def group_count(name: str) -> int:
    """Number of groups of one sequence."""
    if name in ("u", "v", "spin"):
        return FINEST + 1
    if name in ("class", "parting"):
        return 1
    return CLASSES * RANK_GROUPS * 2 if name == "value" else CLASSES


def value_groups(classes: Ints, counts: Ints) -> npt.NDArray[np.uint16]:
    """The group of each harmonic that is stored: by class, rank, and whether it is the last.

    Args:
        classes: ``[n]``.
        counts: stored harmonics of each Gaussian ``[n]``.

    Returns:
        ``[counts.sum()]``, Gaussian by Gaussian.
    """
    groups = np.empty(int(counts.sum()), np.uint16)
    _value_groups(classes, counts, RANK_BINS, RANK_GROUPS, groups)
    return groups


@numba.njit(cache=True, nogil=True)
def _value_groups(classes: Any, counts: Any, bins: Any, width: Any, groups: Any) -> None:
    at = 0
    for i in range(len(counts)):
        first = np.int64(classes[i]) * width
        for rank in range(counts[i]):
            groups[at] = (first + bins[rank]) * 2 + (rank + 1 == counts[i])
            at += 1


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The numbers of one file, in the units of ``quantities``; steps and offsets are by class.

    Attributes:
        cube: lower corner (3) and side of the cube that the octree divides.
        depth_offsets: levels of positions.
        depth_power: units of depth lost per nat of size.
        depth_least: fewest levels.
        scale_units: steps of log scales.
        rotation_offsets: exponents of the grids of directions.
        spin_offsets: of spins.
        opacity_units: steps of logits.
        color_units: steps of the constant coefficient.
        color_basis: its principal axes, row-major 3 x 3, then its mean: 12 numbers.
        harmonic_units: steps of the other coefficients.
        coefficients: of the harmonics beyond the constant one, per channel: 0, 3, 8 or 15.
        antialiased: the scene was trained for anti-aliased rendering (Mip-Splatting).
        harmonic_boost: in steps, added to the magnitude of every harmonic that is not zero.
        harmonic_keep: share of the running mean that predicts the next Gaussian's harmonics.
        harmonic_gains: share of a Gaussian in that running mean.
        harmonic_spec: of product quantization, which then takes the place of all that is said of
            harmonics above.
    """

    cube: tuple[float, ...]
    depth_offsets: tuple[int, ...]
    depth_power: int
    depth_least: int
    scale_units: tuple[int, ...]
    rotation_offsets: tuple[int, ...]
    spin_offsets: tuple[int, ...]
    opacity_units: tuple[int, ...]
    color_units: tuple[int, ...]
    color_basis: tuple[float, ...]
    harmonic_units: tuple[int, ...]
    coefficients: int
    antialiased: bool
    harmonic_boost: float
    harmonic_keep: float
    harmonic_gains: tuple[float, ...]
    harmonic_spec: QuantSpec | None = None

    def refined(self, factor: float) -> Parameters:
        """With all steps divided by a factor; those of rotations by a near power of sqrt(2)."""

        def finer(steps: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(max(1, round(step / factor)) for step in steps)

        def higher(exponents: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(min(LARGEST_OFFSET, v + round(2 * octaves)) for v in exponents)

        octaves = math.log2(factor)
        return dataclasses.replace(
            self,
            depth_offsets=tuple(v + round(octaves * UNIT) for v in self.depth_offsets),
            scale_units=finer(self.scale_units),
            rotation_offsets=higher(self.rotation_offsets),
            spin_offsets=higher(self.spin_offsets),
            opacity_units=finer(self.opacity_units),
            color_units=finer(self.color_units),
            harmonic_units=finer(self.harmonic_units),
        )

    def bins_of(self, name: str) -> int:
        """Bins of the running mean of a sequence."""
        if name.startswith("code") and self.harmonic_spec is not None:
            return 8 if self.harmonic_spec.K <= FOLLOWED_K else 1
        return BINS[name]

    def scale_of(self, name: str) -> npt.NDArray[np.int64] | None:
        """What a symbol of a sequence is worth in its running mean, by group; None for one."""
        if name in ("large", "middle", "small"):
            return np.array(self.scale_units, np.int64)
        if name == "logit":
            return np.array(self.opacity_units, np.int64)
        if name in ("first", "second", "third"):
            return np.array(self.color_units, np.int64)
        return None


def rotation_grids(
    large: npt.NDArray[np.int64],
    middle: npt.NDArray[np.int64],
    small: npt.NDArray[np.int64],
    classes: Ints,
    parameters: Parameters,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Whether each Gaussian is a disc, and the exponents of its direction's and its spin's grid.

    The direction turns the longest against the shortest axis; the spin the two that are nearer to
    each other. Scales are logs ``[n]`` in units.
    """
    disc = large - middle <= middle - small
    rest = np.where(disc, large - middle, middle - small)
    direction = exponents(large - small, classes, np.array(parameters.rotation_offsets))
    spin = exponents(rest, classes, np.array(parameters.spin_offsets))
    return disc, direction.astype(np.uint8), spin.astype(np.uint8)
