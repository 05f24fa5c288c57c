"""The trainable scene: the symbols of a file as real numbers, rounded whenever it is drawn.

A *latent* is a symbol of the file (codec/FORMAT.md) before it is rounded, in steps; steps, classes
and bases are those of the file. The student rounds its latents, restores the scene by the decoder
itself, and lets gradients through (straight-through estimator, Bengio et al. 2013): what is trained
is what is stored. Positions move as far as they keep the order of the file: harmonics depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpq_gaussian.calibration import kernels
from dpq_gaussian.calibration.harmonics import AxisHarmonics, array, harmonics
from dpq_gaussian.calibration.latents import (
    StoredScene,
    color_of,
    depths_of,
    opacity_of,
    places_of,
    shape_of,
)
from dpq_gaussian.calibration.rate_control import RateControl
from dpq_gaussian.calibration.straight_through import rotated_straight_through, straight_through
from dpq_gaussian.codec import models
from dpq_gaussian.codec.dequantize import dequantize
from dpq_gaussian.codec.encoding import Encoded, encode_symbols
from dpq_gaussian.codec.layout import CHUNK
from dpq_gaussian.codec.quantize import Symbols, geometry
from dpq_gaussian.rendering import Splats
from dpq_gaussian.scene import Scene


@dataclass(frozen=True, kw_only=True)
class RoundedState:
    """The symbols of the trainable scene as a file would store them.

    Attributes:
        levels: attribute -> rounded latents ``[n, k]``; of harmonics what ``levels()`` gave.
        chunks: symbols.
    """

    levels: dict[str, Any]
    chunks: list[Symbols]


class SceneStudent(nn.Module):
    """The Gaussians of one file as trainable latents.

    Attributes:
        positions: in cells ``[n, 3]``, relative to the original's.
        scales: latents ``[n, 3]`` of large, middle and small.
        turns: rotation vectors ``[n, 3]`` in grid steps about the axes that they began with.
        opacity: latents ``[n, 1]``.
        color: latents ``[n, 3]``.
        harmonics: those beyond the constant ones, if there are any.
        rate_control: the price of a bit; set by the task that trains.
    """

    rate_control: RateControl

    def __init__(self, stored: StoredScene, device: torch.device | str = "cpu") -> None:
        """Begin with the symbols of a file.

        Args:
            stored: the file and its original.
            device: device of latents and pictures.
        """
        super().__init__()
        self._stored, self._file = stored, stored.parameters
        self._classes, self._order = stored.classes, stored.order
        places, self._cells = places_of(stored)
        self.positions = nn.Parameter(torch.from_numpy(places))
        shape, (logits, opacity_steps) = shape_of(stored), opacity_of(stored)
        colors, color_steps = color_of(stored)
        self.scales = nn.Parameter(torch.from_numpy(shape.levels))
        self.turns = nn.Parameter(torch.zeros(len(shape.levels), 3))
        self.opacity = nn.Parameter(torch.from_numpy(logits)[:, None])
        self.color = nn.Parameter(torch.from_numpy(colors))
        self.harmonics = harmonics(stored)
        self._axes, self._levers = shape.axes, shape.levers
        steps = {"scales": shape.steps, "opacity": opacity_steps, "color": color_steps}
        self._steps = {k: torch.from_numpy(v).to(device)[:, None] for k, v in steps.items()}
        cells = self._cells * (self._file.cube[3] / 2.0**32)
        self._cell = torch.from_numpy(cells.astype(np.float32)).to(device)[:, None]
        self._turn = torch.from_numpy(shape.levers).to(device)
        self._basis = torch.tensor(self._file.color_basis[:9], device=device).reshape(3, 3)
        self.to(device)

    def rounded(self, thrift: float = 0.0) -> RoundedState:
        """All latents rounded, as symbols.

        Args:
            thrift: before it is rounded, a latent moves down the slope of its bits by so many steps
                per bit; not those of scales, on which the bits of others depend.
        """
        levels = {name: self._rounded(name, thrift) for name in ("scales", "opacity", "color")}
        scales = levels["scales"]
        if self.harmonics is not None:
            levels["harmonics"] = self.harmonics.levels(thrift)
        angles = np.einsum("nk,nkj->nj", array(self.turns), self._levers).astype(np.float64)
        axes = kernels.rotated_axes(self._axes, angles)
        shape = axes, self._grid(scales)
        starts = range(0, len(scales), CHUNK)
        chunks = [self._chunk(levels, shape, slice(at, at + CHUNK)) for at in starts]
        return RoundedState(levels=levels, chunks=chunks)

    def _grid(self, scales: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Positions on the octree's finest grid ``[n, 3]``, kept in Morton order."""
        base = self._stored.grid
        moved = base + array(self.positions) * self._cells[:, None]
        cells = np.clip(moved, 0, 2.0**32 - 1).astype(np.uint32)
        return kernels.kept_in_order(base, cells, depths_of(scales, self._classes, self._file))

    def _rounded(self, name: str, thrift: float) -> Any:
        latents = array(getattr(self, name))
        levels = _levels(name, latents)
        if not thrift or name == "scales":
            return levels
        return _levels(name, kernels.moved_to_fewer_bits(latents, levels, self._classes, thrift))

    def _chunk(
        self, levels: dict[str, Any], shape: tuple[npt.NDArray[Any], npt.NDArray[Any]], rows: slice
    ) -> Symbols:
        classes, scales = self._classes[rows], levels["scales"][rows]
        sizes = scales[:, 0], scales[:, 1], scales[:, 2]
        axes, grid = (part[rows] for part in shape)
        sequences, bits = geometry(sizes, axes, grid, classes, self._file)
        sequences["logit"] = levels["opacity"][rows, 0].astype(np.int32), classes
        for axis, name in enumerate(("first", "second", "third")):
            sequences[name] = levels["color"][rows, axis].astype(np.int32), classes
        if self.harmonics is not None:
            sequences |= self.harmonics.sequences(levels["harmonics"], rows)
        return Symbols(count=len(classes), sequences=sequences, bits=bits)

    def scene(self, rounded: RoundedState) -> Scene:
        """Decodes the rounded latents to the Gaussians that a reader of the file would get."""
        table = np.zeros((0, 0), np.float32) if self.harmonics is None else self.harmonics.table()
        parts: list[dict[str, npt.NDArray[np.float32]]] = []
        for symbols in rounded.chunks:

            def next_symbols(
                name: str, _: Any, symbols: Symbols = symbols
            ) -> npt.NDArray[np.int32]:
                return np.asarray(symbols.sequences[name][0], np.int32)

            size, bits = symbols.count, symbols.bits
            part = dequantize(size, next_symbols, bits, self._file, table, "calibration")
            parts.append(self._stored.outliers.restore(part, len(parts) * CHUNK).arrays())
        return Scene(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})

    def forward(self, rounded: RoundedState | None = None) -> Splats:
        """The decoded Gaussians, differentiable with respect to the latents."""
        values = Splats.of(self.scene(rounded or self.rounded()), self.scales.device)
        size = self.scales * self._steps["scales"]
        middle = size[:, 0] - size[:, 1]
        logs = torch.stack([size[:, 0], middle, middle - size[:, 2]], dim=1)
        angles = torch.einsum("nk,nkj->nj", self.turns, self._turn)
        logits = self.opacity * self._steps["opacity"]
        colors = (self.color * self._steps["color"]) @ self._basis
        rest = values.sh_rest
        return Splats(
            positions=straight_through(values.positions, self.positions * self._cell),
            log_scales=straight_through(values.log_scales, logs),
            rotations=rotated_straight_through(values.rotations, angles),
            opacity_logits=straight_through(values.opacity_logits, logits[:, 0]),
            sh_dc=straight_through(values.sh_dc, colors),
            sh_rest=rest if self.harmonics is None else self.harmonics(rest),
        )

    def encoded(self, rounded: RoundedState) -> Encoded:
        """Codes the rounded latents into the streams of a file."""
        table = models.axes_to_bytes(np.zeros((0, 0), np.int8))
        if self.harmonics is not None:
            table = self.harmonics.stored_table(rounded.levels["harmonics"])
        items = self._order, self._classes
        outliers = self._stored.outliers
        return encode_symbols(items, self._file, table, rounded.chunks, outliers=outliers)

    def bits(self, rounded: RoundedState) -> Tensor:
        """Estimates the bits of the streams, differentiably with respect to the latents.

        Levels count by how often they occur in their class, interpolated between levels; the bits
        of positions and rotations, which follow from the scales, count without a gradient.
        """
        total = torch.zeros((), device=self.scales.device)
        for name in ("scales", "opacity", "color"):
            latents: Tensor = getattr(self, name)
            total = total + kernels.bits(latents, rounded.levels[name], self._classes)
        if isinstance(self.harmonics, AxisHarmonics):
            levels, boost = rounded.levels["harmonics"][0], self.harmonics.boost
            latents = self.harmonics.latents
            total = total + kernels.bits(latents, levels, self._classes, boost)
        return total + float(sum(_fixed_bits(symbols) for symbols in rounded.chunks))


def _levels(name: str, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Rounds latents; the middle and small scales are differences and stay at least 0."""
    levels = np.rint(latents).astype(np.int64)
    if name == "scales":
        levels[:, 1:] = np.maximum(0, levels[:, 1:])
    return levels


def _fixed_bits(symbols: Symbols) -> float:
    """Bits of paths, and of rotations as if spread evenly over their grids (FORMAT.md, G7)."""
    directions, spins = symbols.sequences["u"][1], symbols.sequences["spin"][1]
    turns = directions.sum(dtype=np.int64) + spins.sum(dtype=np.int64) / 2
    return 8 * len(symbols.bits) + float(turns)
