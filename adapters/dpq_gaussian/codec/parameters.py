"""The numbers of a scene file as the manifest holds them, and back with every check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpq_core.artifact import strict_json
from dpq_core.artifact.entries import spec_from_json
from dpq_core.errors import ArtifactError, SpecError
from dpq_core.spec import QuantSpec
from dpq_gaussian.codec import codebooks
from dpq_gaussian.codec.layout import CODEC_VERSION, LARGEST_OFFSET, Parameters
from dpq_gaussian.policy import CLASSES
from dpq_gaussian.scene import SH_REST

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
}
"""Lists of numbers: how many, and the largest magnitude."""


def parameters_to_json(parameters: Parameters) -> dict[str, Any]:
    """As the manifest holds them."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(parameters).items()}
    del values["harmonic_spec"]
    if parameters.harmonic_spec is not None:
        values["harmonic_spec"] = parameters.harmonic_spec.to_json()
    return {"codec": CODEC_VERSION, **values}


def parameters_from_json(data: Mapping[str, Any], where: str) -> Parameters:
    """The inverse of ``parameters_to_json``, with every check.

    Raises:
        ArtifactError: unknown version or key, or a number out of range.
    """
    where = f"{where}: parameters"
    if data.get("codec") != CODEC_VERSION:
        found = strict_json.shown(data.get("codec"))
        raise ArtifactError(f"{where}: codec {found} is not known; this dpq reads {CODEC_VERSION}")
    optional = {"harmonic_spec"} - set(data)
    names = {"codec", *Parameters.__dataclass_fields__} - optional
    values = dict(strict_json.exactly(dict(data), names, where))
    del values["codec"]
    for name, (low, high) in _INTEGERS.items():
        items = strict_json.typed(values[name], list, f"{where}: {name}")
        if len(items) != CLASSES or any(type(v) is not int or not low <= v <= high for v in items):
            raise ArtifactError(f"{where}: {name} is not {CLASSES} integers in {low}..{high}")
        values[name] = tuple(items)
    for name, (count, limit) in _NUMBERS.items():
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
