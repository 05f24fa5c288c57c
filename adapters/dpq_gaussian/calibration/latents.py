"""The latents that calibration begins with: the original's values, limited to stored bins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpq_core.errors import ANY, Hint, SourceError
from dpq_gaussian.codec.decoding import CodedScene, SceneFile, UnwrittenScene
from dpq_gaussian.codec.encoding import encode_again
from dpq_gaussian.codec.grids import SPINS, UNIT, Ints, depths, grid_spacing
from dpq_gaussian.codec.layout import rotation_grids
from dpq_gaussian.codec.outliers import Outliers
from dpq_gaussian.codec.parameters import Parameters
from dpq_gaussian.codec.positions import to_grid
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
class StoredScene:
    """The content of a coded scene, chunks joined, beside the scene it was made from.

    Attributes:
        parameters: numbers of the codec.
        table: table of the harmonics: principal axes ``[R, 3 M]``, or codebooks ``[C, K, d]``.
        decoded: the scene that is read from it.
        symbols: symbols of every sequence except those of harmonics that are coded by axes.
        harmonics: symbols along the axes ``[n, R]``, or codes ``[n, G]``.
        original: the uncompressed scene in the order of the file.
        order: the Gaussians of the file in the uncompressed scene ``[n]``.
        grid: their positions on the octree's finest grid ``[n, 3]``.
        outliers: Gaussians whose positions are stored exactly.
    """

    parameters: Parameters
    table: FloatArray
    decoded: Scene
    symbols: Mapping[str, npt.NDArray[np.int32]]
    harmonics: npt.NDArray[np.int32]
    original: Scene
    order: npt.NDArray[np.int64]
    grid: npt.NDArray[np.uint32]
    outliers: Outliers

    @property
    def classes(self) -> npt.NDArray[np.uint8]:
        """Classes of importance ``[n]``."""
        return self.symbols["class"].astype(np.uint8)


def read(file: SceneFile, original: Scene, baseline: str) -> StoredScene:
    """Reads a coded scene and finds its Gaussians in the original.

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
    return StoredScene(**stored, original=original.take(order), order=order, grid=grid)


def encoded_finer(stored: StoredScene, factor: float) -> StoredScene:
    """Codes the original again with steps divided by ``factor``, in the same order and classes."""
    p = stored.parameters.refined(factor)
    encoded = encode_again(
        stored.original, stored.grid, stored.classes, p, stored.table, stored.outliers
    )
    fields = _joined(UnwrittenScene(encoded))
    return StoredScene(**fields, original=stored.original, order=stored.order, grid=stored.grid)


def has_encoder_symbols(stored: StoredScene) -> bool:
    """Whether the stored symbols are the encoder's own, and not those of a calibration."""
    fresh = encoded_finer(stored, 1.0)
    pairs = [(fresh.symbols[name], values) for name, values in stored.symbols.items()]
    pairs.append((fresh.harmonics, stored.harmonics))
    if any(one.shape != other.shape for one, other in pairs):
        return False
    moved = sum(int((one != other).sum()) for one, other in pairs)
    return moved <= _ROUNDED * sum(values.size for _, values in pairs)


def _joined(coded: CodedScene) -> dict[str, Any]:
    """The fields of ``StoredScene`` that come from the coded scene, by name."""
    chunks = [coded.chunk_and_symbols(index) for index in range(coded.chunks)]
    scenes = [scene.arrays() for scene, _ in chunks]
    decoded = Scene(**{name: np.concatenate([s[name] for s in scenes]) for name in scenes[0]})
    symbols = {
        name: np.concatenate([chunk_symbols.sequences[name][0] for _, chunk_symbols in chunks])
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
        "outliers": coded.outliers,
    }


def _matched(
    file: SceneFile, decoded: Scene, original: Scene, baseline: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Indices of the original's Gaussians in the file's order, and their grid coordinates."""
    kept = visible(original)
    if kept is None:
        kept = np.arange(len(original))
    other = f"{file.file.path} was made of another scene than {baseline}"
    hint = Hint.of("say which with {}", baseline=ANY)
    if len(kept) != len(file):
        raise SourceError(f"{other}: {len(file):,} Gaussians, not {len(kept):,}", hint)
    corner, side = np.array(file.parameters.cube[:3]), file.parameters.cube[3]
    grid = to_grid(np.ascontiguousarray(original.positions[kept]), corner, side)
    along = morton_order(grid)
    order, grid = kept[along], grid[along]
    cells = to_grid(decoded.positions, corner, side)
    apart = np.abs(cells.astype(np.int64) - grid).max(axis=1)
    coarsest = 2.0 ** (32 - file.parameters.depth_least)
    if (apart > _MOVED * coarsest).any():
        raise SourceError(f"{other}: positions differ", hint)
    return order, grid


def clipped_to_bins(values: npt.NDArray[np.float64], symbols: npt.NDArray[np.int32]) -> FloatArray:
    """Limits values, in steps, to the bins of their symbols, so that they round to them."""
    return np.clip(values, symbols - _INSIDE, symbols + _INSIDE).astype(np.float32)


def log_sizes(levels: npt.NDArray[np.integer[Any]], step: Ints) -> tuple[Ints, Ints, Ints]:
    """Log standard deviations in fixed-point units, longest first, from symbols ``[n, 3]``."""
    large = levels[:, 0] * step
    middle = large - levels[:, 1] * step
    return large, middle, middle - levels[:, 2] * step


def depths_of(
    levels: npt.NDArray[np.integer[Any]], classes: npt.NDArray[np.uint8], p: Parameters
) -> Ints:
    """Octree depths of positions ``[n]``, from the symbols of the scales ``[n, 3]``."""
    large, middle, _ = log_sizes(levels, np.array(p.scale_units, np.int64)[classes])
    offsets = np.array(p.depth_offsets)
    return depths(large, middle, classes, offsets, p.depth_power, p.depth_least)


def places_of(stored: StoredScene) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Offsets of positions in cells ``[n, 3]``, and the size of a cell in grid units ``[n]``.

    They are 0 but for Gaussians that an earlier calibration has moved to another cell.
    """
    p = stored.parameters
    symbols = np.stack([stored.symbols[k] for k in ("large", "middle", "small")], axis=1)
    depth = depths_of(symbols, stored.classes, p)
    cells = np.exp2(32.0 - depth)
    now = to_grid(stored.decoded.positions, np.array(p.cube[:3]), p.cube[3])
    drop = (32 - depth).astype(np.uint64)[:, None]
    moved = (now.astype(np.uint64) >> drop) != (stored.grid.astype(np.uint64) >> drop)
    apart = (now.astype(np.float64) - stored.grid) / cells[:, None]
    return np.where(moved.any(axis=1, keepdims=True), apart, 0).astype(np.float32), cells


@dataclass(frozen=True, kw_only=True)
class InitialShape:
    """Initial values of the scales and rotations.

    Attributes:
        levels: scales in steps ``[n, 3]``: large, middle, small.
        axes: unit vectors by falling length, rows ``[n, 3, 3]``.
        levers: the same rows as rotation vectors: by one grid step about each axis.
        steps: steps of the scales, in nats ``[n]``.
    """

    levels: FloatArray
    axes: npt.NDArray[np.float64]
    levers: FloatArray
    steps: FloatArray


def shape_of(stored: StoredScene) -> InitialShape:
    """Initial scales and rotations: the original's, where they round to the stored symbols."""
    p, classes = stored.parameters, stored.classes
    symbols = np.stack([stored.symbols[k] for k in ("large", "middle", "small")], axis=1)
    step = np.array(p.scale_units, np.int64)[classes]
    large, middle, small = log_sizes(symbols, step)
    logs, axes = sorted_axes(stored.original.log_scales, stored.original.rotations)
    logs *= UNIT
    values = np.stack([logs[:, 0], large - logs[:, 1], middle - logs[:, 2]], axis=1)
    disc, direction, spin = rotation_grids(large, middle, small, classes, p)
    grid, spins = grid_spacing(direction), SPINS[spin]
    _, restored = sorted_axes(stored.decoded.log_scales, stored.decoded.rotations)
    # On the rim of the hemisphere of directions, float32 may have ended on the wrong side.
    restored[np.abs(restored) < _RIM] = 0.0
    turned = np.stack([stored.symbols[k] for k in ("u", "v", "spin")], axis=1)
    same = (turns(axes, disc, grid, spins) == turned).all(axis=1)
    axes = np.where(same[:, None, None], axes, restored)
    angles = np.repeat(1 / grid[:, None], 3, axis=1)
    # A turn about the axis that the direction tells is a spin.
    angles[np.arange(len(disc)), np.where(disc, 2, 0)] = np.pi / spins
    return InitialShape(
        levels=clipped_to_bins(values / step[:, None], symbols),
        axes=axes,
        levers=(axes * angles[:, :, None]).astype(np.float32),
        steps=(step / UNIT).astype(np.float32),
    )


def opacity_of(stored: StoredScene) -> tuple[FloatArray, FloatArray]:
    """Initial opacity logits in steps ``[n]``, and the steps ``[n]``."""
    steps = np.array(stored.parameters.opacity_units)[stored.classes] / UNIT
    values = stored.original.opacity_logits / steps
    return clipped_to_bins(values, stored.symbols["logit"]), steps.astype(np.float32)


def color_of(stored: StoredScene) -> tuple[FloatArray, FloatArray]:
    """Initial colours along their axes, in steps ``[n, 3]``, and the steps ``[n]``."""
    p = stored.parameters
    basis, mean = np.reshape(p.color_basis[:9], (3, 3)), np.array(p.color_basis[9:])
    steps = np.array(p.color_units)[stored.classes] / UNIT
    values = (stored.original.sh_dc - mean) @ basis.T / steps[:, None]
    symbols = np.stack([stored.symbols[k] for k in ("first", "second", "third")], axis=1)
    return clipped_to_bins(values, symbols), steps.astype(np.float32)


def harmonics_of(stored: StoredScene, dead_zone: float) -> tuple[FloatArray, FloatArray]:
    """Initial harmonics along the axes, in steps ``[n, R]``, and the steps ``[n]``.

    Args:
        stored: whose harmonics are coded along axes.
        dead_zone: what is added to a magnitude before it is rounded down.
    """
    p, symbols = stored.parameters, stored.harmonics
    steps = np.array(p.harmonic_units)[stored.classes] / UNIT
    missing = (stored.original.sh_rest - stored.decoded.sh_rest).reshape(len(symbols), -1)
    size = np.abs(symbols)
    kept = np.sign(symbols) * (size + p.harmonic_boost)
    values = kept + missing.astype(np.float64) @ stored.table.T / steps[:, None]
    margin = 0.5 - _INSIDE
    most = size + 1 - dead_zone - margin
    least = np.where(symbols == 0, -most, size - dead_zone + margin)
    values = np.where(symbols < 0, -1, 1) * values
    values = np.where(symbols < 0, -1, 1) * np.clip(values, least, most)
    return values.astype(np.float32), steps.astype(np.float32)
