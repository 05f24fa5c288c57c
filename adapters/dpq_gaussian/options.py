"""Options of ``dpq compress`` for splat scenes."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpq_core.errors import SpecError
from dpq_gaussian.policy import ATTRIBUTES, PRESETS, Policy


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How small, how fine, and what is known of where the scene is looked at from."""

    preset: str = field(
        default="balanced", metadata={"help": f"size against fidelity: {', '.join(PRESETS)}"}
    )
    quality: float = field(
        default=1.0,
        metadata={"help": "divides every step of the preset: 2 is finer by 6 dB, 0.5 coarser"},
    )
    attribute: tuple[str, ...] = field(
        default=(),
        metadata={"help": "NAME=FACTOR: as --quality for one of " + ", ".join(ATTRIBUTES)},
    )
    position_bits: int = field(
        default=0,
        metadata={"help": "bits per axis, relative to the scene, that positions have at least"},
    )
    cameras: str = field(
        default="",
        metadata={
            "help": "poses from which the scene is seen (COLMAP folder, cameras.json, "
            "transforms.json): bytes go where these look; without it, to what a rig around the "
            "scene sees"
        },
    )

    def __post_init__(self) -> None:
        """Check every field."""
        if self.preset not in PRESETS:
            raise SpecError(
                f"option --preset must be one of {', '.join(PRESETS)}, not {self.preset!r}"
            )
        if not 0.01 <= self.quality <= 100:
            raise SpecError(f"option --quality must be 0.01 to 100, not {self.quality}")
        if not 0 <= self.position_bits <= 32:
            raise SpecError(f"option --position-bits must be 0 to 32, not {self.position_bits}")
        for text in self.attribute:
            _factor(text)

    def policy(self) -> Policy:
        """The preset with all changes."""
        factors = dict.fromkeys(ATTRIBUTES, self.quality)
        for text in self.attribute:
            name, factor = _factor(text)
            factors[name] *= factor
        return PRESETS[self.preset].refined(factors, self.position_bits)


def _factor(text: str) -> tuple[str, float]:
    """``positions=2`` as a name and a number."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if name not in ATTRIBUTES or not 0.001 <= number <= 1000:
        raise SpecError(
            f"option --attribute {text!r}: write NAME=FACTOR, a factor of 0.001 to 1000 for one of "
            + ", ".join(ATTRIBUTES)
        )
    return name, number
