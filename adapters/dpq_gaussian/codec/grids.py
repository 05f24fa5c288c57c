"""Integer arithmetic of the quantization grids: fixed-point steps, octree depths, rotations.

Whatever decides how the following symbols are read is computed in integers, so that a decoder on
any machine comes to the same decision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

UNIT = 4096
"""Fixed-point units per nat of a scale, per logit, per unit of colour, and per octave."""

DEEPEST = 32
FINEST = 24
"""Exponents of the rotation grid: its step is ``2 ** (-exponent / 2)``."""

_RATIO_BINS = 128  # of 1/8 nat: log of the ratio of two standard deviations
LEAST_RATIO = 0.05

Ints = npt.NDArray[np.int64]
Small = npt.NDArray[np.integer[Any]]


def to_units(step: float) -> int:
    """Converts a step to fixed-point units, at least one."""
    return max(1, round(step * UNIT))


def depths(
    large: Ints, middle: Ints, classes: Small, offsets: Ints, power: int, least: int
) -> Ints:
    """Octree depths of positions ``[n]``, from their scales and classes.

    Args:
        large: log of the largest standard deviation ``[n]``, in units.
        middle: log of the second standard deviation ``[n]``, in units.
        classes: ``[n]``.
        offsets: levels in units, by class.
        power: units of depth lost per nat of ``(large + middle) / 2``.
        least: fewest levels.
    """
    size = (large + middle) // 2
    depth = (offsets[classes] - (size * power >> 12) + UNIT // 2) >> 12
    levels: Ints = np.clip(depth, least, DEEPEST)
    return levels


def _gains() -> Ints:
    """Exponent gained by elongation: two per octave of the lever ``2 sinh(log ratio / 2)``."""
    centres = (np.arange(_RATIO_BINS) + 0.5) / 8
    lever = np.maximum(LEAST_RATIO, 2 * np.sinh(centres / 2))
    return np.array([round(2 * math.log2(v)) for v in lever], np.int64)


GAINS = _gains()
"""Part of the format (FORMAT.md, G7)."""

SPINS = np.array([max(1, round(math.pi * 2.0 ** (e / 2))) for e in range(FINEST + 1)], np.int64)
"""Steps of a spin in half a turn, by exponent; part of the format (FORMAT.md, G7)."""


def exponents(ratio: Ints, classes: Small, offsets: Ints) -> Ints:
    """Exponents of rotation grids ``[n]``.

    Args:
        ratio: log of the ratio of two standard deviations ``[n]``, in units, not negative.
        classes: ``[n]``.
        offsets: exponents by class.
    """
    gain = GAINS[np.clip(ratio >> 9, 0, _RATIO_BINS - 1)]
    exponent: Ints = np.clip(offsets[classes] + gain, 0, FINEST)
    return exponent


def grid_spacing(exponent: Small) -> npt.NDArray[np.float64]:
    """Grid points per unit of a direction's coordinates, at least one."""
    grid: npt.NDArray[np.float64] = np.exp2(exponent / 2)
    return grid
