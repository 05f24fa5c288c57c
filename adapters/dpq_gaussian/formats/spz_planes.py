"""The attribute planes of .spz: 8-bit levels, 24-bit positions, packed quaternions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpq_core.errors import SourceError
from dpq_gaussian.formats.clipping import Clipped
from dpq_gaussian.formats.levels import (
    LOGIT_OF_LEVEL,
    Bytes,
    fill_largest,
    opacities,
    to_level,
    unit,
)
from dpq_gaussian.formats.stream import SceneStream
from dpq_gaussian.scene import SH_REST, FloatArray, Scene
from dpq_gaussian.scene.extent import extent_of, pulled_in

FRACTION = 12
"""Bits after the point of a position, as the reference implementation writes them."""

COLOUR = 0.15
"""Levels of colour are 255 * (COLOUR * sh_dc + 0.5), wider than what can be displayed."""

SH_STEPS = (8, 16)
"""Of the 256 levels over [-1, 1], every 8th is used at degree 1, every 16th above."""

ROOM = 128
"""Radii of a scene; positions farther away have no say in how fine all are."""

_LEVELS = np.arange(256)
SCALE_OF_LEVEL = (_LEVELS / 16.0 - 10.0).astype(np.float32)
COLOUR_OF_LEVEL = ((_LEVELS / 255.0 - 0.5) / COLOUR).astype(np.float32)
SH_OF_LEVEL = ((_LEVELS - 128) / 128.0).astype(np.float32)

COLOURS_KEPT = (-(0.5 + 1 / 510) / COLOUR, (0.5 + 1 / 510) / COLOUR)
SCALES_KEPT = (-10.0 - 1 / 32, 255 / 16.0 - 10.0 + 1 / 32)
HARMONICS_KEPT = (-1.0 - 1 / 16, 1.0 + 1 / 16)
"""Values beyond these are clipped, and not only rounded."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The header fields of an .spz file that decide the layout of its planes.

    Attributes:
        version: 2 to 4.
        count: N.
        degree: degree of the harmonics, 0 to 3.
        fraction: bits after the point of a position.
    """

    version: int
    count: int
    degree: int
    fraction: int = FRACTION

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of positions, opacities, colours, scales, rotations and harmonics."""
        per_gaussian = (9, 1, 3, 3, 3 if self.version == 2 else 4, 3 * SH_REST[self.degree])
        return tuple(self.count * nbytes for nbytes in per_gaussian)


def decode(planes: Sequence[bytes], layout: Layout) -> Scene:
    """Decodes planes to a scene in the file's axes, with new and writable arrays."""
    n, m = layout.count, SH_REST[layout.degree]
    levels = [np.frombuffer(plane, dtype=np.uint8) for plane in planes]
    fixed = np.zeros((n, 3), dtype=np.int32)
    for byte in range(3):  # into the upper 24 bits, so that the shift below extends the sign
        fixed |= levels[0].reshape(n, 3, 3)[..., byte].astype(np.int32) << (8 + 8 * byte)
    rotate = _first_three if layout.version == 2 else _smallest_three
    return Scene(
        positions=(fixed >> 8).astype(np.float32) * np.float32(2.0**-layout.fraction),
        log_scales=SCALE_OF_LEVEL[levels[3]].reshape(n, 3),
        rotations=rotate(levels[4].reshape(n, -1)),
        opacity_logits=LOGIT_OF_LEVEL[levels[1]],
        sh_dc=COLOUR_OF_LEVEL[levels[2]].reshape(n, 3),
        sh_rest=SH_OF_LEVEL[levels[5]].reshape(n, m, 3),
    )


def encode(stream: SceneStream, version: int) -> tuple[list[Bytes], Layout, tuple[str, ...]]:
    """Encodes Gaussians to the planes of version 3 or 4, with notes for the user.

    Raises:
        SourceError: the scene does not fit in 24 bits with any number of fractional bits.
    """
    n, m = stream.count, SH_REST[stream.sh_degree]
    places = np.empty((n, 3), dtype=np.float32)
    widths = (1, 3, 3, 4, 3 * m)
    planes: list[Bytes] = [np.empty((n, width), dtype=np.uint8) for width in widths]
    clipped = Clipped("spz")
    at = 0
    for scene in stream.chunks:
        part = slice(at, at + len(scene))
        places[part] = scene.positions
        planes[0][part, 0] = to_level(opacities(scene.opacity_logits) * 255.0)
        planes[1][part] = to_level((COLOUR * scene.sh_dc + 0.5) * 255.0)
        planes[2][part] = to_level((scene.log_scales + 10.0) * 16.0)
        planes[3][part] = _pack_smallest_three(unit(scene.rotations))
        planes[4][part] = _sh_levels(scene.sh_rest)
        clipped.count("color", scene.sh_dc, *COLOURS_KEPT)
        clipped.count("scales", scene.log_scales, *SCALES_KEPT)
        clipped.count("harmonics", scene.sh_rest, *HARMONICS_KEPT)
        at += len(scene)
    fraction, moved = _fit_positions(places, planes[2])
    notes = clipped.notes()
    if fraction < FRACTION:
        notes += (f"far positions: {fraction} fractional bits instead of {FRACTION}",)
    if moved:
        limit = 2.0 ** (23 - fraction)
        notes += (
            f"moved {moved:,} Gaussians far outside of the scene to the border of what spz holds "
            f"(+-{limit:,.0f}), smaller in proportion",
        )
    layout = Layout(version=version, count=n, degree=stream.sh_degree, fraction=fraction)
    return [_pack_positions(places, fraction), *planes], layout, notes


def _fit_positions(places: FloatArray, scales: Bytes) -> tuple[int, int]:
    """Fractional bits of positions, and the number of Gaussians moved to fit into these.

    12 bits, or as many fewer as the scene needs; not for Gaussians more than ROOM of its radii
    away, which are moved (in place, with the levels of their scales).
    """
    extent = extent_of(places, SCALE_OF_LEVEL[scales])
    needed = float(np.abs(places[~extent.beyond(places, ROOM)]).max())
    for fraction in range(FRACTION, -1, -1):
        if round(needed * 2**fraction) < 1 << 23:
            break
    else:
        raise SourceError(f"a scene of size {needed:.3g} does not fit in .spz (at most 8,388,607)")
    limit = ((1 << 23) - 1) / 2.0**fraction
    far = np.flatnonzero((np.abs(places) > limit).any(axis=1))
    if len(far):
        box = np.full(3, -limit), np.full(3, limit)
        places[far], factors = pulled_in(places[far], extent.middle, *box)
        np.clip(places, -limit, limit, out=places)
        smaller = SCALE_OF_LEVEL[scales[far]] + np.log(factors)[:, None]
        scales[far] = to_level((smaller + 10.0) * 16.0)
    return fraction, len(far)


def _pack_positions(places: FloatArray, fraction: int) -> Bytes:
    """uint8 ``[N, 3, 3]``: 24-bit two's complement, little-endian."""
    packed = np.empty((len(places), 3, 3), dtype=np.uint8)
    for axis in range(3):  # axis by axis: the float64 copy stays small
        fixed = np.rint(places[:, axis].astype(np.float64) * 2.0**fraction).astype(np.int32)
        for byte in range(3):
            packed[:, axis, byte] = fixed >> 8 * byte & 255
    return packed


def _sh_levels(sh_rest: FloatArray) -> Bytes:
    """uint8 ``[n, 3 M]``, coefficient by coefficient; 0 stays 0."""
    n, m, _ = sh_rest.shape
    steps = np.full((m, 1), SH_STEPS[1])
    steps[:3] = SH_STEPS[0]
    level = np.rint(np.clip(sh_rest, -4.0, 4.0) * 128.0).astype(np.int32) + 128
    level = np.clip((level + steps // 2) // steps * steps, 0, 255)
    return np.asarray(level.reshape(n, -1), dtype=np.uint8)


def _first_three(levels: Bytes) -> FloatArray:
    """Version 2: x, y, z in 8 bits each, w from the unit length."""
    rotations = np.zeros((len(levels), 4), dtype=np.float32)
    rotations[:, 1:] = levels.astype(np.float32) / np.float32(127.5) - 1.0
    return fill_largest(rotations, np.zeros(len(levels), dtype=np.intp))


def _smallest_three(levels: Bytes) -> FloatArray:
    """Version 3 on: 2 bits for which is largest of x, y, z, w, then sign and 9 bits each."""
    words = np.ascontiguousarray(levels).view("<u4")[:, 0]
    largest = (words >> 30).astype(np.intp)
    fields = np.stack([words >> shift & 1023 for shift in (20, 10, 0)], axis=1)
    sizes = (fields & 511).astype(np.float32) * np.float32(np.sqrt(0.5) / 511)
    xyzw = np.zeros((len(words), 4), dtype=np.float32)
    kept = np.arange(4)[None, :] != largest[:, None]
    xyzw[kept] = np.where(fields & 512, -sizes, sizes).ravel()
    return np.roll(fill_largest(xyzw, largest), 1, axis=1)


def _pack_smallest_three(rotations: FloatArray) -> Bytes:
    """uint8 ``[n, 4]`` from unit quaternions w, x, y, z."""
    xyzw = np.roll(rotations, -1, axis=1)
    largest = np.abs(xyzw).argmax(axis=1)
    sign = np.sign(np.take_along_axis(xyzw, largest[:, None], axis=1))
    kept = np.arange(4)[None, :] != largest[:, None]
    rest = (xyzw * sign)[kept].reshape(-1, 3)
    sizes = np.floor(np.abs(rest) * np.float32(511 / np.sqrt(0.5)) + 0.5).astype(np.uint32)
    fields = np.minimum(sizes, 511) | np.where(rest < 0, 512, 0).astype(np.uint32)
    words = largest.astype(np.uint32) << 30
    for i, shift in enumerate((20, 10, 0)):
        words |= fields[:, i] << shift
    return np.asarray(words.astype("<u4").view(np.uint8).reshape(-1, 4))
