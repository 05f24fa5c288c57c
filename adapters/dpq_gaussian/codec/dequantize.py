"""Dequantization of one chunk: from symbols back to the attributes of Gaussians."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dpq_gaussian.codec import codebooks, harmonics, positions
from dpq_gaussian.codec.grids import SPINS, UNIT, depths, grid_spacing
from dpq_gaussian.codec.layout import Ints, rotation_grids, streams_of, value_groups
from dpq_gaussian.codec.parameters import Parameters
from dpq_gaussian.codec.rotations import quaternions
from dpq_gaussian.scene import Scene

SymbolSource = Callable[[str, Ints], npt.NDArray[np.int32]]
"""Name of a sequence and the groups of its symbols -> the symbols."""


def dequantize(
    count: int,
    next_symbols: SymbolSource,
    bits: bytes | memoryview,
    parameters: Parameters,
    table: npt.NDArray[np.float32],
    where: str,
) -> Scene:
    """Restores the Gaussians of one chunk from its symbols.

    Args:
        count: n.
        next_symbols: decodes the sequences, in the order in which they are asked for.
        bits: plain bits of the positions.
        parameters: numbers of the file.
        table: table of the harmonics: the principal axes that are used, or codebooks.
        where: begins an error message.

    Raises:
        ArtifactError: the symbols are impossible.
    """
    p = parameters
    nothing = np.zeros(count, np.uint8)
    classes = next_symbols("class", nothing).astype(np.uint8)
    step = np.array(p.scale_units, np.int64)[classes]
    large = next_symbols("large", classes) * step
    middle = large - next_symbols("middle", classes) * step
    small = middle - next_symbols("small", classes) * step
    disc, direction, spin = rotation_grids(large, middle, small, classes, p)
    turned = [
        next_symbols("u", direction),
        next_symbols("v", direction),
        next_symbols("spin", spin),
    ]
    logits = next_symbols("logit", classes) * (np.array(p.opacity_units)[classes] / UNIT)
    depth = depths(large, middle, classes, np.array(p.depth_offsets), p.depth_power, p.depth_least)
    cube = np.array(p.cube[:3]), p.cube[3]
    places = positions.decode(depth, next_symbols("parting", nothing), bits, cube, where)
    colors = _colors(next_symbols, classes, p)
    rest = _harmonics(next_symbols, classes, p, table)
    return Scene(
        positions=places,
        log_scales=(np.stack([large, middle, small], axis=1) / UNIT).astype(np.float32),
        rotations=quaternions(np.stack(turned, axis=1), disc, grid_spacing(direction), SPINS[spin]),
        opacity_logits=logits.astype(np.float32),
        sh_dc=colors,
        sh_rest=rest.reshape(count, p.coefficients, 3),
    )


def _colors(
    next_symbols: SymbolSource, classes: npt.NDArray[np.uint8], p: Parameters
) -> npt.NDArray[np.float32]:
    symbols = np.stack([next_symbols(k, classes) for k in ("first", "second", "third")], axis=1)
    basis, mean = np.reshape(p.color_basis[:9], (3, 3)), np.array(p.color_basis[9:])
    steps = np.array(p.color_units)[classes] / UNIT
    colors: npt.NDArray[np.float32] = (symbols * steps[:, None]) @ basis + mean
    return colors.astype(np.float32)


def _harmonics(
    next_symbols: SymbolSource,
    classes: npt.NDArray[np.uint8],
    p: Parameters,
    table: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    if not p.coefficients:
        return np.zeros((len(classes), 0), np.float32)
    if p.harmonic_spec is not None:
        codes = np.stack([next_symbols(name, classes) for name in streams_of(p)["harmonics"]])
        return codebooks.restore(codes, table, p.coefficients, p.harmonic_spec)
    counts = next_symbols("count", classes)
    values = next_symbols("value", value_groups(classes, counts))
    steps, gains = np.array(p.harmonic_units)[classes] / UNIT, np.array(p.harmonic_gains)[classes]
    return harmonics.restore(counts, values, steps, gains, table, p.harmonic_boost, p.harmonic_keep)
