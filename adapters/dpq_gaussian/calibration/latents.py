"""Where calibration starts: symbols of a coded scene, and the original within their bins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.errors import SourceError
from dpq_gaussian.codec.decoding import CodedScene, SceneFile, UnwrittenScene
from dpq_gaussian.codec.encoding import encode_again, grid_of
from dpq_gaussian.codec.grids import SPINS, UNIT, Ints, depths, spacing
from dpq_gaussian.codec.layout import rotation_grids
from dpq_gaussian.codec.parameters import Parameters
from dpq_gaussian.codec.rotations import sorted_axes, turns
from dpq_gaussian.scene import Scene, visible
from dpq_gaussian.scene.morton import morton_order

FloatArray = npt.NDArray[np.float32]

_INSIDE = 0.49
"""Distance from a symbol that float32 cannot round to the next one."""

_RIM = 1e-6

_ROUNDED = 0.001
"""Share of the symbols that another machine may round to the other side."""

_MOVED = 8
"""Cells that an earlier calibration moves a Gaussian, at most."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a coded scene holds, all chunks together, and the scene that it was made of.

    Attributes:
        parameters: of the codec.
        table: of the harmonics: principal axes ``[R, 3 M]``, or codebooks ``[C, K, d]``.
        decoded: the scene that is read from it.
        symbols: of every sequence but those of harmonics that are coded by axes.
        harmonics: symbols along the axes ``[n, R]``, or codes ``[n, G]``.
        original: the uncompressed scene in the order of the file.
        order: the Gaussians of the file in the uncompressed scene ``[n]``.
        grid: their positions on the octree's finest grid ``[n, 3]``.
    """

    parameters: Parameters
    table: FloatArray
    decoded: Scene
    symbols: Mapping[str, npt.NDArray[np.int32]]
    harmonics: npt.NDArray[np.int32]
    original: Scene
    order: npt.NDArray[np.int64]
    grid: npt.NDArray[np.uint32]

    @property
    def classes(self) -> npt.NDArray[np.uint8]:
        """Of importance ``[n]``."""
        return self.symbols["class"].astype(np.uint8)


def read(file: SceneFile, original: Scene, baseline: str) -> Stored:
    """Everything that a student starts from.

    Args:
        file: to calibrate.
        original: the scene that it was made of.
        baseline: what to call that.

    Raises:
        SourceError: it was made of another scene.
        ArtifactError: the file is damaged.
    """
    stored = _joined(file)
    order, grid = _matched(file, stored["decoded"], original, baseline)
    return Stored(**stored, original=original.take(order), order=order, grid=grid)


def refined(stored: Stored, factor: float) -> Stored:
    """The original coded anew, with steps divided by a factor; classes and order stay."""
    p = stored.parameters.refined(factor)
    encoded = encode_again(stored.original, stored.grid, stored.classes, p, stored.table)
    found = _joined(UnwrittenScene(encoded))
    return Stored(**found, original=stored.original, order=stored.order, grid=stored.grid)


def as_encoded(stored: Stored) -> bool:
    """Whether the symbols are those that the encoder chooses; calibration chooses others."""
    fresh = refined(stored, 1.0)
    pairs = [(fresh.symbols[name], values) for name, values in stored.symbols.items()]
    pairs.append((fresh.harmonics, stored.harmonics))
    if any(one.shape != other.shape for one, other in pairs):
        return False
    moved = sum(int((one != other).sum()) for one, other in pairs)
    return moved <= _ROUNDED * sum(values.size for _, values in pairs)


def _joined(coded: CodedScene) -> dict[str, Any]:
    """Of ``Stored``, what is read from a coded scene."""
    chunks = [coded.chunk_and_symbols(index) for index in range(coded.chunks)]
    scenes = [scene.arrays() for scene, _ in chunks]
    decoded = Scene(**{name: np.concatenate([s[name] for s in scenes]) for name in scenes[0]})
    symbols = {
        name: np.concatenate([found.sequences[name][0] for _, found in chunks])
        for name in chunks[0][1].sequences
    }
    codes = [symbols[name] for name in symbols if name.startswith("code")]
    if codes:
        harmonics = np.stack(codes, axis=1)
    else:
        axes = len(coded.table) if coded.parameters.coefficients else 0
        harmonics = np.zeros((len(coded), axes), np.int32)
        if axes:
            stored = np.arange(axes) < symbols["count"][:, None]
            harmonics[stored] = symbols["value"]
    return {
        "parameters": coded.parameters,
        "table": coded.table,
        "decoded": decoded,
        "symbols": symbols,
        "harmonics": harmonics,
    }


def _matched(
    file: SceneFile, decoded: Scene, original: Scene, baseline: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """The original's Gaussians in the order of the file, and their cells."""
    kept = visible(original)
    if kept is None:
        kept = np.arange(len(original))
    other = f"{file.file.path} was made of another scene than {baseline}"
    if len(kept) != len(file):
        raise SourceError(
            f"{other}: {len(file):,} Gaussians, not {len(kept):,}; say which with --baseline"
        )
    corner, side = np.array(file.parameters.cube[:3]), file.parameters.cube[3]
    grid = grid_of(np.ascontiguousarray(original.positions[kept]), corner, side)
    along = morton_order(grid)
    order, grid = kept[along], grid[along]
    cells = grid_of(decoded.positions, corner, side)
    apart = np.abs(cells.astype(np.int64) - grid).max(axis=1)
    coarsest = 2.0 ** (32 - file.parameters.depth_least)
    if (apart > _MOVED * coarsest).any():
        raise SourceError(f"{other}: positions differ; say which with --baseline")
    return order, grid


def within(values: npt.NDArray[np.float64], symbols: npt.NDArray[np.int32]) -> FloatArray:
    """Values in steps, moved into the bins of the symbols: they round to these."""
    return np.clip(values, symbols - _INSIDE, symbols + _INSIDE).astype(np.float32)


def sizes(levels: npt.NDArray[np.integer[Any]], step: Ints) -> tuple[Ints, Ints, Ints]:
    """Logs of the standard deviations in units, longest first, of symbols ``[n, 3]``."""
    large = levels[:, 0] * step
    middle = large - levels[:, 1] * step
    return large, middle, middle - levels[:, 2] * step


def depths_of(
    levels: npt.NDArray[np.integer[Any]], classes: npt.NDArray[np.uint8], p: Parameters
) -> Ints:
    """Octree levels at which positions are stored ``[n]``, by the symbols of scales ``[n, 3]``."""
    large, middle, _ = sizes(levels, np.array(p.scale_units, np.int64)[classes])
    offsets = np.array(p.depth_offsets)
    return depths(large, middle, classes, offsets, p.depth_power, p.depth_least)


def places_of(stored: Stored) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Positions relative to the original's, in cells ``[n, 3]``, and cells on the grid ``[n]``.

    They are 0 but for Gaussians that an earlier calibration has moved to another cell.
    """
    p = stored.parameters
    symbols = np.stack([stored.symbols[k] for k in ("large", "middle", "small")], axis=1)
    depth = depths_of(symbols, stored.classes, p)
    cells = np.exp2(32.0 - depth)
    now = grid_of(stored.decoded.positions, np.array(p.cube[:3]), p.cube[3])
    drop = (32 - depth).astype(np.uint64)[:, None]
    moved = (now.astype(np.uint64) >> drop) != (stored.grid.astype(np.uint64) >> drop)
    apart = (now.astype(np.float64) - stored.grid) / cells[:, None]
    return np.where(moved.any(axis=1, keepdims=True), apart, 0).astype(np.float32), cells


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Where scales and rotations start.

    Attributes:
        levels: scales in steps ``[n, 3]``: large, middle, small.
        axes: unit vectors by falling length, rows ``[n, 3, 3]``.
        levers: the same rows as rotation vectors: by one grid step about each axis.
        steps: of the scales, in nats ``[n]``.
    """

    levels: FloatArray
    axes: npt.NDArray[np.float64]
    levers: FloatArray
    steps: FloatArray


def shape_of(stored: Stored) -> Shape:
    """Scales and rotations of the original, where they round to what is stored."""
    p, classes = stored.parameters, stored.classes
    symbols = np.stack([stored.symbols[k] for k in ("large", "middle", "small")], axis=1)
    step = np.array(p.scale_units, np.int64)[classes]
    large, middle, small = sizes(symbols, step)
    logs, axes = sorted_axes(stored.original.log_scales, stored.original.rotations)
    logs *= UNIT
    wanted = np.stack([logs[:, 0], large - logs[:, 1], middle - logs[:, 2]], axis=1)
    disc, direction, spin = rotation_grids(large, middle, small, classes, p)
    grid, spins = spacing(direction), SPINS[spin]
    _, restored = sorted_axes(stored.decoded.log_scales, stored.decoded.rotations)
    # On the rim of the hemisphere of directions, float32 may have ended on the wrong side.
    restored[np.abs(restored) < _RIM] = 0.0
    turned = np.stack([stored.symbols[k] for k in ("u", "v", "spin")], axis=1)
    same = (turns(axes, disc, grid, spins) == turned).all(axis=1)
    axes = np.where(same[:, None, None], axes, restored)
    angles = np.repeat(1 / grid[:, None], 3, axis=1)
    # A turn about the axis that the direction tells is a spin.
    angles[np.arange(len(disc)), np.where(disc, 2, 0)] = np.pi / spins
    return Shape(
        levels=within(wanted / step[:, None], symbols),
        axes=axes,
        levers=(axes * angles[:, :, None]).astype(np.float32),
        steps=(step / UNIT).astype(np.float32),
    )


def opacity_of(stored: Stored) -> tuple[FloatArray, FloatArray]:
    """Logits in steps ``[n]``, and the steps ``[n]``."""
    steps = np.array(stored.parameters.opacity_units)[stored.classes] / UNIT
    wanted = stored.original.opacity_logits / steps
    return within(wanted, stored.symbols["logit"]), steps.astype(np.float32)


def color_of(stored: Stored) -> tuple[FloatArray, FloatArray]:
    """Constant coefficients along their axes, in steps ``[n, 3]``, and the steps ``[n]``."""
    p = stored.parameters
    basis, mean = np.reshape(p.color_basis[:9], (3, 3)), np.array(p.color_basis[9:])
    steps = np.array(p.color_units)[stored.classes] / UNIT
    wanted = (stored.original.sh_dc - mean) @ basis.T / steps[:, None]
    symbols = np.stack([stored.symbols[k] for k in ("first", "second", "third")], axis=1)
    return within(wanted, symbols), steps.astype(np.float32)


def harmonics_of(stored: Stored, dead_zone: float) -> tuple[FloatArray, FloatArray]:
    """Harmonics along the axes, in steps ``[n, R]``, and the steps ``[n]``.

    Args:
        stored: whose harmonics are coded along axes.
        dead_zone: what is added to a magnitude before it is rounded down.
    """
    p, symbols = stored.parameters, stored.harmonics
    steps = np.array(p.harmonic_units)[stored.classes] / UNIT
    missing = (stored.original.sh_rest - stored.decoded.sh_rest).reshape(len(symbols), -1)
    size = np.abs(symbols)
    kept = np.sign(symbols) * (size + p.harmonic_boost)
    wanted = kept + missing.astype(np.float64) @ stored.table.T / steps[:, None]
    margin = 0.5 - _INSIDE
    most = size + 1 - dead_zone - margin
    least = np.where(symbols == 0, -most, size - dead_zone + margin)
    wanted = np.where(symbols < 0, -1, 1) * wanted
    wanted = np.where(symbols < 0, -1, 1) * np.clip(wanted, least, most)
    return wanted.astype(np.float32), steps.astype(np.float32)
