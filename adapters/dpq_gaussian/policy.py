"""Quantization policies: the step of each attribute by importance, and the presets.

Rate-distortion optimum: a step is inversely proportional to how much the picture feels an error.
A Gaussian's *class* says that by octaves of its importance (importance.py); the step of attribute
A in class c is ``base_A * 2 ** (-falloff_A * octave(c))``, bounded above, because no linear rule
holds for errors as large as the attribute itself. The numbers are fitted to renders
(docs/gaussian.md, Codec).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpq_core.errors import SpecError
from dpq_core.spec import QuantSpec

CLASSES = 8
"""Classes of importance, an octave of amplitude apart."""

CENTRE = 5.5
"""The class of an importance of one."""

POWER = 2.5
"""Of the factor by which steps are finer over that of the bytes, at the sizes of the presets."""

ATTRIBUTES = ("positions", "scales", "rotations", "opacity", "color", "harmonics")

CODERS = ("transform", "pq")
"""Of the harmonics."""

PQ_SPEC = QuantSpec(
    d=15, K=1024, scope="subspace", conv_layout="channel", row_scale=False, codebook_dtype="float16"
)
"""The spec that the option ``harmonics_spec`` changes: three subspaces, by the order of bands."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The rule for the quantization step of one attribute.

    Attributes:
        base: step at an importance of one, in the attribute's own unit.
        falloff: power of the importance.
        largest: bound of the step.
    """

    base: float
    falloff: float
    largest: float

    def of_classes(self) -> tuple[float, ...]:
        """The step of each class."""
        octaves = (c + 0.5 - CENTRE for c in range(CLASSES))
        return tuple(min(self.largest, self.base * 2.0 ** (-self.falloff * o)) for o in octaves)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The choices that decide how a scene is quantized.

    Attributes:
        positions: steps relative to ``size ** size_power``, where a Gaussian's size is the
            geometric mean of its two larger standard deviations relative to the scene's.
        scales: steps of the log scales.
        rotations: steps of a direction (in units of the octahedron), where the lever is one.
        opacity: steps of the opacity logit.
        color: steps of the constant coefficient, along its principal axes.
        harmonics: steps of the other coefficients, along their principal axes.
        size_power: see positions.
        dead_zone: what is added before rounding down a harmonic's magnitude; 0.5 is plain rounding.
        spin: step of a spin, in radians, relative to that of a direction.
        handed_on: share of a harmonic's error that the next Gaussian makes up for.
        boost: by so many steps a harmonic's magnitude is reconstructed above its symbol: makes up
            for what rounding takes away from all.
        keep: share of the running mean of harmonics that predicts the next ones.
        gains: by class, share of a Gaussian in that running mean.
        least_depth: levels of the octree that every position has at least.
        harmonic_spec: product quantization of the harmonics, instead of steps.
    """

    positions: Steps = Steps(base=0.2, falloff=0.65, largest=1.5)
    scales: Steps = Steps(base=0.28, falloff=0.7, largest=0.8)
    rotations: Steps = Steps(base=0.27, falloff=0.7, largest=1.5)
    opacity: Steps = Steps(base=0.44, falloff=0.65, largest=2.0)
    color: Steps = Steps(base=0.15, falloff=0.9, largest=2.0)
    harmonics: Steps = Steps(base=0.12, falloff=0.85, largest=2.0)
    size_power: float = 0.65
    dead_zone: float = 0.3
    handed_on: float = 0.5
    boost: float = 0.2
    keep: float = 0.8
    gains: tuple[float, ...] = (0.15,) * CLASSES
    spin: float = 1.0
    least_depth: int = 8
    harmonic_spec: QuantSpec | None = field(default=None, repr=False)

    def steps(self, name: str) -> tuple[float, ...]:
        """The step of each class for one attribute."""
        rule: Steps = getattr(self, name)
        return rule.of_classes()

    def refined(self, factors: Mapping[str, float], least_depth: int = 0) -> Policy:
        """A policy whose base steps are divided by factors, with a least depth for positions."""
        changes: dict[str, Any] = {}
        for name, factor in factors.items():
            rule: Steps = getattr(self, name)
            changes[name] = dataclasses.replace(rule, base=rule.base / factor)
        depth = max(self.least_depth, least_depth)
        return dataclasses.replace(self, **changes, least_depth=depth)


def _preset(factor: float) -> Policy:
    return Policy().refined(dict.fromkeys(ATTRIBUTES, factor))


PRESETS: Mapping[str, Policy] = {
    "small": _preset(1.25),
    "balanced": _preset(2.5),
    "high": _preset(6.0),
}
"""About 38, 43 and 49 dB against the original's renders on a photographed scene."""


def parse_factor(text: str) -> tuple[str, float]:
    """Parses ``NAME=FACTOR``, such as ``positions=2``."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if name not in ATTRIBUTES or not 0.001 <= number <= 1000:
        raise SpecError(
            f"write NAME=FACTOR, a factor of 0.001 to 1000 for one of {', '.join(ATTRIBUTES)}",
            option="attribute",
            value=text,
        )
    return name, number
