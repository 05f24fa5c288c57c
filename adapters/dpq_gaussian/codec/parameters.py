"""The numbers of a scene file, and their form in the manifest with every check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpq_core.artifact import strict_json
from dpq_core.artifact.entries import spec_from_json
from dpq_core.artifact.single_manifest import MAX_ITEMS
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.spec import QuantSpec
from dpq_gaussian.codec import codebooks
from dpq_gaussian.codec.grids import UNIT
from dpq_gaussian.policy import CLASSES
from dpq_gaussian.scene import SH_REST

CODEC_VERSION = 1

LARGEST_OFFSET = 64
"""Of the exponents of rotation grids; beyond ``grids.FINEST`` they change nothing."""

OPTIONAL = ("harmonic_spec", "outliers", "origin", "flat")
"""Keys that a manifest may lack."""

_MAX_UNITS = 1 << 24

_INTEGERS: Mapping[str, tuple[int, int]] = {
    "depth_offsets": (-_MAX_UNITS, _MAX_UNITS),
    "scale_units": (1, _MAX_UNITS),
    "rotation_offsets": (-LARGEST_OFFSET, LARGEST_OFFSET),
    "spin_offsets": (-LARGEST_OFFSET, LARGEST_OFFSET),
    "opacity_units": (1, _MAX_UNITS),
    "color_units": (1, _MAX_UNITS),
    "harmonic_units": (1, _MAX_UNITS),
}
"""Lists of one integer per class, and their range."""

_NUMBERS: Mapping[str, tuple[int, float]] = {
    "cube": (4, 1e38),
    "color_basis": (12, 1e6),
    "harmonic_gains": (CLASSES, 1.0),
    "origin": (3, 1e15),
}
"""Lists of numbers: how many, and the largest magnitude."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What a file says of a scene beside its Gaussians; see ``Parameters``."""

    antialiased: bool = False
    flat: bool = False
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)


NO_MARKS = Marks()


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The numbers of one file, in the units of ``grids``; steps and offsets are by class.

    Attributes:
        cube: lower corner (3) and side of the cube that the octree divides.
        depth_offsets: levels of positions.
        depth_power: units of depth lost per nat of size.
        depth_least: fewest levels.
        scale_units: steps of log scales.
        rotation_offsets: exponents of the grids of directions.
        spin_offsets: exponents of the grids of spins.
        opacity_units: steps of logits.
        color_units: steps of the constant coefficient.
        color_basis: its principal axes, row-major 3 x 3, then its mean: 12 numbers.
        harmonic_units: steps of the other coefficients.
        coefficients: number of harmonics beyond the constant one, per channel: 0, 3, 8 or 15.
        antialiased: the scene was trained for anti-aliased rendering (Mip-Splatting).
        harmonic_boost: in steps, added to the magnitude of every harmonic that is not zero.
        harmonic_keep: share of the running mean that predicts the next Gaussian's harmonics.
        harmonic_gains: share of a Gaussian in that running mean.
        harmonic_spec: spec of product quantization, which then replaces what is said of
            harmonics above.
        outliers: number of Gaussians whose positions are in the stream ``outliers``.
        origin: place of the scene's zero in the world, which positions are relative to.
        flat: the scene is one of flat discs (2D Gaussian Splatting).
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
    outliers: int = 0
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flat: bool = False

    def refined(self, factor: float) -> Parameters:
        """Parameters with steps divided by a factor; for rotations by a near power of sqrt(2)."""

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


def parameters_to_json(parameters: Parameters) -> dict[str, Any]:
    """Converts the parameters to their form in the manifest.

    Optional ones are left out where they say nothing, so that every version reads such a file.
    """
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(parameters).items()}
    for name in OPTIONAL:
        del values[name]
    if parameters.harmonic_spec is not None:
        values["harmonic_spec"] = parameters.harmonic_spec.to_json()
    if parameters.outliers:
        values["outliers"] = parameters.outliers
    if any(parameters.origin):
        values["origin"] = list(parameters.origin)
    if parameters.flat:
        values["flat"] = True
    return {"codec": CODEC_VERSION, **values}


def parameters_from_json(data: Mapping[str, Any], where: str) -> Parameters:
    """Reads and checks the parameters of a manifest.

    Raises:
        ArtifactError: unknown version or key, or a number out of range.
    """
    where = f"{where}: parameters"
    if data.get("codec") != CODEC_VERSION:
        version = strict_json.shown(data.get("codec"))
        raise ArtifactError(
            f"{where}: codec {version} is not known; this dpq reads {CODEC_VERSION}"
        )
    optional = set(OPTIONAL) - set(data)
    names = {"codec", *Parameters.__dataclass_fields__} - optional
    values = dict(strict_json.exactly(dict(data), names, where))
    del values["codec"]
    for name, (low, high) in _INTEGERS.items():
        items = strict_json.typed(values[name], list, f"{where}: {name}")
        if len(items) != CLASSES or any(type(v) is not int or not low <= v <= high for v in items):
            raise ArtifactError(f"{where}: {name} is not {CLASSES} integers in {low}..{high}")
        values[name] = tuple(items)
    for name, (count, limit) in _NUMBERS.items():
        if name in optional:
            continue
        items = strict_json.typed(values[name], list, f"{where}: {name}")
        good = all(type(v) in (int, float) and abs(v) <= limit for v in items)
        if len(items) != count or not good:
            raise ArtifactError(f"{where}: {name} is not {count} numbers up to {limit:g}")
        values[name] = tuple(map(float, items))
    strict_json.integer(values["depth_power"], _MAX_UNITS, f"{where}: depth_power")
    strict_json.integer(values["depth_least"], 32, f"{where}: depth_least")
    strict_json.typed(values["antialiased"], bool, f"{where}: antialiased")
    if values["coefficients"] not in SH_REST.values() or type(values["coefficients"]) is not int:
        raise ArtifactError(f"{where}: coefficients are not those of a degree 0 to 3")
    for name in ("harmonic_boost", "harmonic_keep"):
        if not abs(strict_json.typed(values[name], float, f"{where}: {name}")) <= 1:
            raise ArtifactError(f"{where}: {name} is not in -1..1")
    if "flat" in values:
        strict_json.typed(values["flat"], bool, f"{where}: flat")
    if "outliers" in values:
        strict_json.integer(values["outliers"], MAX_ITEMS, f"{where}: outliers")
    if "harmonic_spec" in values:
        here = f"{where}: harmonic_spec"
        values["harmonic_spec"] = _spec(values["harmonic_spec"], values["coefficients"], here)
    return Parameters(**values)


def _spec(value: object, coefficients: int, where: str) -> QuantSpec:
    spec = spec_from_json(value, where)
    try:
        codebooks.partition(1, coefficients, spec)
    except SpecError as error:
        raise ArtifactError(f"{where}: {error}") from None
    return spec
