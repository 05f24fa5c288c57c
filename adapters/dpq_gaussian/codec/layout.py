"""The streams of a scene file: their sequences of symbols and how each is entropy coded.

Both the encoder and the decoder follow this module; FORMAT.md describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dpq_gaussian.codec.grids import FINEST, exponents
from dpq_gaussian.codec.parameters import Parameters
from dpq_gaussian.policy import CLASSES

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


def bins_of(parameters: Parameters, name: str) -> int:
    """Number of bins of the running mean of a sequence, a context of its coder."""
    if name.startswith("code") and parameters.harmonic_spec is not None:
        return 8 if parameters.harmonic_spec.K <= FOLLOWED_K else 1
    return BINS[name]


def scale_of(parameters: Parameters, name: str) -> npt.NDArray[np.int64] | None:
    """Weight of a symbol in the running mean of a sequence, by group; None for 1."""
    if name in ("large", "middle", "small"):
        return np.array(parameters.scale_units, np.int64)
    if name == "logit":
        return np.array(parameters.opacity_units, np.int64)
    if name in ("first", "second", "third"):
        return np.array(parameters.color_units, np.int64)
    return None


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
