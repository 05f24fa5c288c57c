"""The encoder of scene files: Morton order, quantization, context models, entropy coding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dpq_core.artifact.entropy import fit as entropy_fit
from dpq_core.artifact.entropy import varint
from dpq_core.artifact.entropy.coding import Model
from dpq_gaussian.codec import codebooks, harmonics, models
from dpq_gaussian.codec.grids import UNIT, to_units
from dpq_gaussian.codec.harmonics import BASIS_SCALE
from dpq_gaussian.codec.layout import CHUNK, bins_of, group_count, scale_of, streams_of
from dpq_gaussian.codec.outliers import NO_OUTLIERS, Outliers, outliers_in_order, robust_cube
from dpq_gaussian.codec.parameters import NO_MARKS, Marks, Parameters
from dpq_gaussian.codec.positions import to_grid
from dpq_gaussian.codec.quantize import Symbols, quantize
from dpq_gaussian.policy import CENTRE, CLASSES, Policy
from dpq_gaussian.scene import Scene
from dpq_gaussian.scene.morton import morton_order

_SAMPLE = 1 << 17
"""Gaussians from which principal axes and centres are learned, at most."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A coded scene in memory: order, parameters and streams.

    Attributes:
        order: indices of the source's Gaussians in the order of the file ``[n]``.
        classes: classes of importance, in the order of the file ``[n]``.
        parameters: numbers for the manifest.
        models: the stream of that name.
        chunked: stream -> the bytes of each chunk.
        outliers: Gaussians whose positions are stored exactly.
    """

    order: npt.NDArray[np.int64]
    classes: npt.NDArray[np.uint8]
    parameters: Parameters
    models: bytes
    chunked: dict[str, list[bytes]]
    outliers: Outliers = NO_OUTLIERS

    @property
    def whole(self) -> dict[str, bytes]:
        """The streams that are read in one piece."""
        outliers = {"outliers": self.outliers.to_bytes()} if len(self.outliers) else {}
        return {"models": self.models, **outliers}

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        whole = sum(map(len, self.whole.values()))
        return whole + sum(len(p) for parts in self.chunked.values() for p in parts)


def encode(
    scene: Scene,
    importance: npt.NDArray[np.float32],
    policy: Policy,
    *,
    kept: npt.NDArray[np.int64] | None = None,
    marks: Marks = NO_MARKS,
    tick: Callable[[str, float], None] = lambda what, share: None,
) -> Encoded:
    """Codes a scene that has passed ``check_values``.

    Args:
        scene: may consist of views into a mapped file; it is read in pieces.
        importance: amplitude with which each Gaussian is seen ``[N]``; its square one on average.
        policy: steps.
        kept: indices of the Gaussians to code, ascending; None codes all.
        marks: what the file says of the scene beside its Gaussians.
        tick: told what is done, and how much of it.
    """
    tick("order", 0.0)
    positions = np.ascontiguousarray(scene.positions if kept is None else scene.positions[kept])
    corner, side, outside = robust_cube(positions, scene.log_scales)
    grid = to_grid(positions, corner, side)
    order = morton_order(grid)
    grid = grid[order]
    outliers = outliers_in_order(positions, order, outside)
    order = order if kept is None else kept[order]
    with np.errstate(divide="ignore"):
        octave = np.floor(np.log2(importance[order].astype(np.float64)) + CENTRE)
    classes = np.clip(octave, 0, CLASSES - 1).astype(np.uint8)
    table: npt.NDArray[np.floating[Any]]
    parameters, table = _parameters(scene, order, classes, policy, (corner, side))
    parameters = dataclasses.replace(
        parameters, outliers=len(outliers), **dataclasses.asdict(marks)
    )
    if parameters.coefficients and policy.harmonic_spec is not None:
        spec, table = codebooks.learn(scene, order, importance[order], policy.harmonic_spec)
        parameters = dataclasses.replace(parameters, harmonic_spec=spec)
    coded = _quantize(scene, order, grid, classes, (parameters, table), policy, tick)
    stored = _stored(table, parameters, coded)
    return encode_symbols((order, classes), parameters, stored, coded, outliers=outliers, tick=tick)


def encode_again(
    scene: Scene,
    grid: npt.NDArray[np.uint32],
    classes: npt.NDArray[np.uint8],
    parameters: Parameters,
    codewords: npt.NDArray[np.float32],
    outliers: Outliers = NO_OUTLIERS,
) -> Encoded:
    """Codes a scene that is already in a file's order, with the classes of that file.

    Args:
        scene: the original's Gaussians ``[n]``.
        grid: their positions on the octree's finest grid ``[n, 3]``.
        classes: classes of importance ``[n]``.
        parameters: steps.
        codewords: codebooks of the harmonics, where they are codes; axes are found anew.
        outliers: Gaussians whose positions are stored exactly.
    """
    p, table = parameters, codewords.astype(np.float64)
    order = np.arange(len(scene))
    if p.harmonic_spec is None:
        table = _harmonic_axes(*_sampled(scene, order, classes))
    coded = _quantize(scene, order, grid, classes, (p, table), Policy())
    return encode_symbols((order, classes), p, _stored(table, p, coded), coded, outliers=outliers)


def encode_symbols(
    items: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]],
    parameters: Parameters,
    table: bytes,
    coded: list[Symbols],
    *,
    outliers: Outliers = NO_OUTLIERS,
    tick: Callable[[str, float], None] = lambda what, share: None,
) -> Encoded:
    """Learns the context models of quantized chunks and codes their symbols.

    Args:
        items: order and classes of the Gaussians, each ``[n]`` (see ``Encoded``).
        parameters: numbers of the file.
        table: axes or codebooks of the harmonics as the file holds them.
        coded: all chunks.
        outliers: Gaussians whose positions are stored exactly.
        tick: told what is done, and how much of it.
    """
    tick("models", 0.5)
    learned = {name: _fit(coded, name, parameters) for name in models.sequences(parameters)}
    return Encoded(
        order=items[0],
        classes=items[1],
        parameters=parameters,
        models=models.pack(learned, table),
        chunked=_chunked(coded, learned, parameters, tick),
        outliers=outliers,
    )


def _stored(
    table: npt.NDArray[np.floating[Any]], parameters: Parameters, coded: list[Symbols]
) -> bytes:
    """Codebooks or the used principal axes of the harmonics, as the file stores them."""
    if parameters.harmonic_spec is not None:
        return codebooks.to_bytes(table.astype(np.float32))
    rank = 0
    if parameters.coefficients:
        rank = max(int(symbols.sequences["count"][0].max()) for symbols in coded)
    return models.axes_to_bytes(np.rint(table[:rank] * BASIS_SCALE).astype(np.int8))


def _quantize(
    scene: Scene,
    order: npt.NDArray[np.int64],
    grid: npt.NDArray[np.uint32],
    classes: npt.NDArray[np.uint8],
    numbers: tuple[Parameters, npt.NDArray[np.floating[Any]]],
    policy: Policy,
    tick: Callable[[str, float], None] = lambda what, share: None,
) -> list[Symbols]:
    """Quantizes all chunks on several threads; grid and classes are in the file's order."""
    chunks = range(-(-len(order) // CHUNK))

    def one(index: int) -> Symbols:
        rows = slice(index * CHUNK, (index + 1) * CHUNK)
        return quantize(scene.take(order[rows]), grid[rows], classes[rows], *numbers, policy)

    coded: list[Symbols] = []
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for symbols in pool.map(one, chunks):
            tick("quantize", 0.1 + 0.4 * len(coded) / len(chunks))
            coded.append(symbols)
    return coded


def _chunked(
    coded: list[Symbols],
    learned: Mapping[str, Model],
    parameters: Parameters,
    tick: Callable[[str, float], None],
) -> dict[str, list[bytes]]:
    """The bytes of every chunk, by stream."""
    streams = streams_of(parameters)
    chunked: dict[str, list[bytes]] = {stream: [] for stream in streams}
    for done, symbols in enumerate(coded):
        tick("code", 0.7 + 0.3 * done / len(coded))
        for stream, parts in chunked.items():
            parts.append(_code(symbols, streams[stream], learned))
    return chunked | {"paths": [symbols.bits for symbols in coded]}


def _code(symbols: Symbols, names: tuple[str, ...], learned: Mapping[str, Model]) -> bytes:
    coded = []
    for name in names:
        data = learned[name].encode(*symbols.sequences[name])
        coded.append(varint.pack([len(data)]) + data)
    return b"".join(coded)


def _fit(chunks: list[Symbols], name: str, parameters: Parameters) -> Model:
    return entropy_fit.fit(
        [symbols.sequences[name] for symbols in chunks],
        groups=group_count(name),
        bins=bins_of(parameters, name),
        scale=scale_of(parameters, name),
    )


def _parameters(
    scene: Scene,
    order: npt.NDArray[np.int64],
    classes: npt.NDArray[np.uint8],
    policy: Policy,
    cube: tuple[npt.NDArray[np.float64], float],
) -> tuple[Parameters, npt.NDArray[np.float64]]:
    """The numbers of the file, and the principal axes of the harmonics."""
    corner, side = cube
    sample, weights = _sampled(scene, order, classes)
    size = np.sort(sample.log_scales.astype(np.float64), axis=1)[:, 1:].mean()
    mean = sample.sh_dc.mean(axis=0, dtype=np.float64)
    basis = harmonics.principal_axes(sample.sh_dc - mean, weights)
    harmonic_units = tuple(to_units(s) for s in policy.steps("harmonics"))
    # A position's step is base * size^power, with sizes relative to the scene's mean one.
    levels = [
        math.log2(side) - size / math.log(2) - math.log2(s) for s in policy.steps("positions")
    ]
    levels = [v + policy.size_power * size / math.log(2) for v in levels]
    return Parameters(
        cube=(*map(float, corner), side),
        depth_offsets=tuple(round(v * UNIT) for v in levels),
        depth_power=round(policy.size_power * UNIT / math.log(2)),
        depth_least=policy.least_depth,
        scale_units=tuple(to_units(s) for s in policy.steps("scales")),
        rotation_offsets=tuple(round(-2 * math.log2(s)) for s in policy.steps("rotations")),
        spin_offsets=tuple(
            round(-2 * math.log2(s * policy.spin)) for s in policy.steps("rotations")
        ),
        opacity_units=tuple(to_units(s) for s in policy.steps("opacity")),
        color_units=tuple(to_units(s) for s in policy.steps("color")),
        color_basis=(*map(float, basis.reshape(-1)), *map(float, mean)),
        harmonic_units=harmonic_units,
        coefficients=sample.sh_rest.shape[1],
        antialiased=False,
        harmonic_boost=policy.boost,
        harmonic_keep=policy.keep,
        harmonic_gains=policy.gains,
    ), _harmonic_axes(sample, weights)


def _sampled(
    scene: Scene, order: npt.NDArray[np.int64], classes: npt.NDArray[np.uint8]
) -> tuple[Scene, npt.NDArray[np.float64]]:
    """The Gaussians from which principal axes are learned, and their weights."""
    picked = slice(None, None, -(-len(order) // _SAMPLE))
    return scene.take(order[picked]), np.exp2(2.0 * classes[picked])


def _harmonic_axes(sample: Scene, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Principal axes ``[3 M, 3 M]`` of the harmonics."""
    if not sample.sh_rest.shape[1]:
        return np.zeros((0, 0))
    vectors = sample.sh_rest.reshape(len(sample), -1).astype(np.float64)
    return harmonics.principal_axes(vectors, weights)
