"""Quantization of one chunk: from attributes of Gaussians in file order to symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_gaussian.codec import codebooks, harmonics, positions
from dpq_gaussian.codec.grids import SPINS, UNIT, depths, grid_spacing
from dpq_gaussian.codec.layout import Ints, rotation_grids, value_groups
from dpq_gaussian.codec.parameters import Parameters
from dpq_gaussian.codec.rotations import sorted_axes, turns
from dpq_gaussian.policy import Policy
from dpq_gaussian.scene import Scene

LARGEST_LOG = 40.0
LARGEST_LOGIT = 9.0
LARGEST_COLOR = 1000.0
"""Attributes beyond these change no picture, and are moved to them."""


@dataclass(frozen=True, kw_only=True)
class Symbols:
    """The symbols of one chunk by sequence, with their groups, and the plain position bits."""

    count: int
    sequences: dict[str, tuple[Ints, Ints]]
    bits: bytes


def quantize(
    scene: Scene,
    grid: npt.NDArray[np.uint32],
    classes: npt.NDArray[np.uint8],
    parameters: Parameters,
    table: npt.NDArray[np.floating[Any]],
    policy: Policy,
) -> Symbols:
    """Quantizes the attributes of one chunk to symbols.

    Args:
        scene: n Gaussians in order.
        grid: their positions on the octree's finest grid ``[n, 3]``.
        classes: classes of importance ``[n]``.
        parameters: steps and bases.
        table: table of the harmonics: principal axes, orthonormal rows, or codebooks ``[C, K, d]``.
        policy: how harmonics are rounded.
    """
    p = parameters
    logs, axes_of = sorted_axes(scene.log_scales, scene.rotations)
    step = np.array(p.scale_units, np.int64)[classes]
    log_units = np.clip(logs, -LARGEST_LOG, LARGEST_LOG) * UNIT
    first = np.rint(log_units[:, 0] / step).astype(np.int64)
    large = first * step
    second = np.rint(np.maximum(0, large - log_units[:, 1]) / step).astype(np.int64)
    middle = large - second * step
    third = np.rint(np.maximum(0, middle - log_units[:, 2]) / step).astype(np.int64)
    sequences, bits = geometry((first, second, third), axes_of, grid, classes, p)
    width = np.array(p.opacity_units)[classes] / UNIT
    logits = np.clip(scene.opacity_logits, -LARGEST_LOGIT, LARGEST_LOGIT)
    sequences["logit"] = (np.rint(logits / width).astype(np.int32), classes)
    sequences |= _colors(scene, classes, p)
    if p.coefficients:
        sequences |= _harmonics(scene, classes, p, table, policy)
    return Symbols(count=len(scene), sequences=sequences, bits=bits)


def geometry(
    levels: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]],
    axes: npt.NDArray[np.float64],
    grid: npt.NDArray[np.uint32],
    classes: npt.NDArray[np.uint8],
    parameters: Parameters,
) -> tuple[dict[str, tuple[Ints, Ints]], bytes]:
    """Quantizes classes, scales, positions and rotations; also gives the plain position bits.

    Args:
        levels: symbols of the scales, each ``[n]``: large, middle and small.
        axes: unit vectors by falling length, rows ``[n, 3, 3]``.
        grid: positions on the octree's finest grid ``[n, 3]``.
        classes: classes of importance ``[n]``.
        parameters: steps.
    """
    p = parameters
    none = np.zeros(len(classes), np.uint8)
    sequences: dict[str, tuple[Ints, Ints]] = {"class": (classes.astype(np.int32), none)}
    for name, values in zip(("large", "middle", "small"), levels, strict=True):
        sequences[name] = (values.astype(np.int32), classes)
    step = np.array(p.scale_units, np.int64)[classes]
    large = levels[0] * step
    middle = large - levels[1] * step
    small = middle - levels[2] * step
    depth = depths(large, middle, classes, np.array(p.depth_offsets), p.depth_power, p.depth_least)
    parting, bits = positions.encode(grid, depth)
    sequences["parting"] = (parting, none)
    disc, direction, spin = rotation_grids(large, middle, small, classes, p)
    turned = turns(axes, disc, grid_spacing(direction), SPINS[spin])
    for axis, (name, groups) in enumerate((("u", direction), ("v", direction), ("spin", spin))):
        sequences[name] = (np.ascontiguousarray(turned[:, axis]), groups)
    return sequences, bits


def _colors(
    scene: Scene, classes: npt.NDArray[np.uint8], p: Parameters
) -> dict[str, tuple[Ints, Ints]]:
    sequences: dict[str, tuple[Ints, Ints]] = {}
    width = np.array(p.color_units)[classes] / UNIT
    basis, mean = np.reshape(p.color_basis[:9], (3, 3)), np.array(p.color_basis[9:])
    centred = np.clip(scene.sh_dc, -LARGEST_COLOR, LARGEST_COLOR) - mean
    colors = np.rint(centred @ basis.T / width[:, None]).astype(np.int32)
    for axis, name in enumerate(("first", "second", "third")):
        sequences[name] = (np.ascontiguousarray(colors[:, axis]), classes)
    return sequences


def _harmonics(
    scene: Scene,
    classes: npt.NDArray[np.uint8],
    p: Parameters,
    table: npt.NDArray[np.floating[Any]],
    policy: Policy,
) -> dict[str, tuple[Ints, Ints]]:
    if p.harmonic_spec is not None:
        books = table.astype(np.float32, copy=False)
        codes = codebooks.assign(scene.sh_rest, books, p.harmonic_spec)
        return {f"code{group}": (code, classes) for group, code in enumerate(codes)}
    axes = table.astype(np.float64, copy=False)
    sequences: dict[str, tuple[Ints, Ints]] = {}
    width = np.array(p.harmonic_units)[classes] / UNIT
    vectors = scene.sh_rest.reshape(len(scene), -1)
    gains = np.array(p.harmonic_gains)[classes]
    rounding = policy.dead_zone, policy.handed_on, policy.boost
    symbols, counts = harmonics.quantize(vectors, width, gains, axes, rounding, p.harmonic_keep)
    sequences["count"] = (counts, classes)
    sequences["value"] = (harmonics.gather(symbols, counts), value_groups(classes, counts))
    return sequences
