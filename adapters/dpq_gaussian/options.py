"""Options of ``dpq compress`` for splat scenes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from dpq_core.errors import SpecError
from dpq_core.spec import QuantSpec
from dpq_gaussian.policy import ATTRIBUTES, PRESETS, Policy

CODERS = ("transform", "pq")
"""Of the harmonics."""

PQ_SPEC = QuantSpec(
    d=15, K=1024, scope="subspace", conv_layout="channel", row_scale=False, codebook_dtype="float16"
)
"""What --harmonics-spec changes: three subspaces in the order of the bands."""


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
    harmonics: str = field(
        default="transform",
        metadata={
            "help": "coding of the harmonics: transform (smaller), or pq (product quantization)"
        },
    )
    harmonics_spec: str = field(
        default="",
        metadata={
            "help": "of --harmonics pq: d=15,K=1024; d of the 45 numbers share a code, K codewords "
            "(2..65536), conv_layout=channel (by band) or spatial (by colour channel), scope, seed"
        },
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
            if _factor(text)[0] == "harmonics" and self.harmonics == "pq":
                raise SpecError(f"option --attribute {text!r}: --harmonics pq has no steps")
        if self.harmonics not in CODERS:
            raise SpecError(
                f"option --harmonics must be one of {', '.join(CODERS)}, not {self.harmonics!r}"
            )
        if self.harmonics_spec and self.harmonics != "pq":
            raise SpecError("option --harmonics-spec needs --harmonics pq")
        self.harmonic_spec()

    def harmonic_spec(self) -> QuantSpec | None:
        """The product quantization of the harmonics, if they are quantized like that."""
        if self.harmonics != "pq":
            return None
        from dpq_core.spec import Override
        from dpq_gaussian.codec import codebooks

        if self.harmonics_spec:
            try:
                found = Override.parse(f"harmonics={self.harmonics_spec}").apply(PQ_SPEC)
                if found is None:
                    raise SpecError("write fields of a spec, such as d=15,K=1024")
                codebooks.partition(1, 15, found)
            except SpecError as error:
                raise SpecError(f"option --harmonics-spec: {error}") from None
            return found
        return PQ_SPEC

    def policy(self) -> Policy:
        """The preset with all changes."""
        factors = dict.fromkeys(ATTRIBUTES, self.quality)
        for text in self.attribute:
            name, factor = _factor(text)
            factors[name] *= factor
        policy = PRESETS[self.preset].refined(factors, self.position_bits)
        return dataclasses.replace(policy, harmonic_spec=self.harmonic_spec())


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
