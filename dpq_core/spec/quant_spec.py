"""QuantSpec: every choice that decides the bytes of one quantized tensor.

Frozen, versioned, validated; unknown keys are refused, so that a typo in a recipe or an artifact
of a newer dpq is an error and never a silent default.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpq_core.errors import SpecError
from dpq_core.spec.bits import (
    MAX_TRELLIS_RATE,
    PRESET_D,
    TRELLIS_SIZES,
    suits_trellis,
    with_trellis,
)
from dpq_core.spec.sections import (
    ASSIGNMENTS,
    INITS,
    POOLS,
    AssignmentSpec,
    KMeansSpec,
    PoolSpec,
    is_int,
    is_number,
    raise_failed_checks,
    require_fields,
)

__all__ = [
    "ASSIGNMENTS",
    "CODEBOOK_DTYPES",
    "CONV_LAYOUTS",
    "INITS",
    "MAX_D",
    "MAX_K",
    "MAX_STAGES",
    "ORIENTATIONS",
    "POOLS",
    "PRESET_D",
    "SCOPES",
    "SPEC_VERSION",
    "TRANSFORMS",
    "AssignmentSpec",
    "KMeansSpec",
    "PoolSpec",
    "QuantSpec",
    "keys_of",
]

SPEC_VERSION = 3
"""Newest version of the spec's JSON form; raised when keys are added or change their meaning.

A spec is written in the oldest version that can express it, so that an older dpq reads every spec
that it could have written itself.
"""

MAX_D = 64
MAX_K = 65_536

SCOPES = ("auto", "tensor", "subspace")
ORIENTATIONS = ("input", "output", "auto")
CONV_LAYOUTS = ("spatial", "channel")
CODEBOOK_DTYPES = ("float16", "bfloat16", "float32", "int8")
TRANSFORMS = ("none", "rht")
MAX_STAGES = 16


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """Product quantization of one tensor, seen as a matrix ``[R, C]``.

    Attributes:
        d: subvector length, 1..64.
        K: codewords per codebook, 2..65536; a code takes ceil(log2 K) bits.
        scope: which groups share a codebook: ``tensor`` (one codebook, classic VQ), ``subspace``
            (one per group, PQ), an integer (that many codebooks over adjacent groups), or
            ``auto`` (as many codebooks as fit in ``codebook_share`` of the code bytes).
        codebook_share: for ``auto``: codebook bytes over code bytes, at most this. Small, because
            bytes buy more in a larger shared codebook than in more codebooks (measured on trained
            weights: +0.2 bits of codebooks lower the error by 7 %, +0.3 bits of K by 30 %).
        orientation: subvectors run along the ``input`` axis (columns) or the ``output`` axis; with
            ``auto`` a plan chooses, tensor by tensor, what takes fewer bytes, else ``input``.
        conv_layout: a convolution kernel is flattened ``spatial`` (Cin, kh, kw) or ``channel``
            (kh, kw, Cin) before it is cut into subvectors.
        row_scale: divide each output row by its RMS before k-means; stored as float16 ``[R]``.
        codebook_dtype: stored dtype of the codebooks or the pool; ``int8`` has one float16 scale
            per codebook, or for the pool.
        kmeans: how the codebooks are learned.
        seed: the only source of randomness, mixed with the tensor's name.
        stages: S, codewords that add up to a subvector (AQLM, VQDM); each stage has its codes.
        pool: whether codebooks are stored as a pool and indices into it.
        group_scale: store one float16 scale per group; for subvectors along the inputs only.
        permute: reorder the columns so that codebooks fit better (PQF); for subvectors along the
            inputs only.
        transform: ``rht`` quantizes in a rotated basis without outliers (QuIP#).
        assignment: how codes are chosen.
        trellis_rate: average code bits per weight of a trellis code (QTIP), whose codewords are
            selected by windows of bits that overlap: for the same bits a lower error than codes
            of their own. Needs d = 2 and K of ``TRELLIS_SIZES``; its codebooks are the same for
            all tensors and not stored, each group has a rate and a scale, and there is nothing to
            permute. 0: every subvector has a code of its own.
    """

    d: int = 4
    K: int = 256
    scope: str | int = "auto"
    codebook_share: float = 0.03125
    orientation: str = "input"
    conv_layout: str = "spatial"
    row_scale: bool = True
    codebook_dtype: str = "float16"
    kmeans: KMeansSpec = field(default_factory=KMeansSpec)
    seed: int = 0
    stages: int = 1
    pool: PoolSpec = field(default_factory=PoolSpec)
    group_scale: bool = False
    permute: bool = False
    transform: str = "none"
    assignment: AssignmentSpec = field(default_factory=AssignmentSpec)
    trellis_rate: float = 0.0

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        raise_failed_checks(
            "spec",
            [
                (is_int(self.d, 1, MAX_D), f"d must be 1..{MAX_D}, not {self.d!r}"),
                (is_int(self.K, 2, MAX_K), f"K must be 2..{MAX_K}, not {self.K!r}"),
                (
                    self.scope in SCOPES or is_int(self.scope, 1, 2**31),
                    f"scope must be {', '.join(SCOPES)} or a number of codebooks, "
                    f"not {self.scope!r}",
                ),
                (
                    is_number(self.codebook_share) and 0 < self.codebook_share <= 16,
                    "codebook_share must be in (0, 16]",
                ),
                (
                    self.orientation in ORIENTATIONS,
                    f"orientation must be one of {', '.join(ORIENTATIONS)}",
                ),
                (
                    self.conv_layout in CONV_LAYOUTS,
                    f"conv_layout must be one of {', '.join(CONV_LAYOUTS)}",
                ),
                (isinstance(self.row_scale, bool), "row_scale must be true or false"),
                (
                    self.codebook_dtype in CODEBOOK_DTYPES,
                    f"codebook_dtype must be one of {', '.join(CODEBOOK_DTYPES)}",
                ),
                (isinstance(self.kmeans, KMeansSpec), "kmeans must be a KMeansSpec"),
                (is_int(self.seed, 0, 2**63 - 1), "seed must be 0..2^63-1"),
                (is_int(self.stages, 1, MAX_STAGES), f"stages must be 1..{MAX_STAGES}"),
                (isinstance(self.pool, PoolSpec), "pool must be a PoolSpec"),
                (isinstance(self.group_scale, bool), "group_scale must be true or false"),
                (isinstance(self.permute, bool), "permute must be true or false"),
                (
                    self.transform in TRANSFORMS,
                    f"transform must be one of {', '.join(TRANSFORMS)}",
                ),
                (
                    isinstance(self.assignment, AssignmentSpec),
                    "assignment must be an AssignmentSpec",
                ),
                (
                    self.orientation != "output" or not (self.group_scale or self.permute),
                    "group_scale and permute need orientation input",
                ),
                (
                    not (self.permute and self.transform != "none"),
                    "permute has no effect after a transform; choose one",
                ),
                (
                    self.stages == 1 or getattr(self.pool, "method", "") == "none",
                    "additive stages have no pool",
                ),
                (
                    is_number(self.trellis_rate) and 0 <= self.trellis_rate <= MAX_TRELLIS_RATE,
                    f"trellis_rate must be 0..{MAX_TRELLIS_RATE:g}",
                ),
                (
                    not self.trellis_rate or suits_trellis(self),
                    f"a trellis needs d=2, K={' or '.join(map(str, TRELLIS_SIZES))}, orientation "
                    "input, one stage, and neither pool, permutation nor group_scale",
                ),
            ],
        )

    @classmethod
    def preset(cls, bits: int, **changes: Any) -> QuantSpec:
        """The spec with K = 256 for a nominal width of 1, 2, 3 or 4 bits, with changes applied.

        Subvector lengths are the paper's. Columns are permuted, where subvectors run along them:
        that is worth more than its bytes (docs/methods.md).

        Raises:
            SpecError: ``bits`` is not 1, 2, 3 or 4, or a change is invalid.
        """
        if bits not in PRESET_D:
            raise SpecError(f"bits must be 1, 2, 3 or 4, not {bits!r}; or give d and K yourself")
        return cls(d=PRESET_D[bits], permute=True).replace(**changes)

    def replace(self, **changes: Any) -> QuantSpec:
        """A copy with some fields changed; unknown names raise SpecError.

        A nested spec can be given whole, or as a mapping of what changes in it. The permutation is
        dropped where the new spec cannot have one: with another orientation than ``input``, or in
        a rotated basis. A trellis brings what it needs along; another d or K ends it, and columns
        are permuted then. ``bits`` of 1, 2, 3 or 4 stands for that rate of a trellis, or for the
        d and K of a preset.
        """
        changes = with_trellis(self.trellis_rate, changes)
        values = {**dataclasses.asdict(self), **changes}
        along_input = changes.get("orientation", "input") == "input"
        rotated = changes.get("transform", "none") != "none"
        if "permute" not in changes and (rotated or not along_input):
            values["permute"] = False
        for key in NESTED:
            if isinstance(changes.get(key), Mapping):
                values[key] = {**dataclasses.asdict(getattr(self, key)), **changes[key]}
        return QuantSpec.from_json(values)

    @property
    def code_bits(self) -> int:
        """Bits of one stored code: ceil(log2 K)."""
        return max(1, math.ceil(math.log2(self.K)))

    @property
    def bits(self) -> float:
        """Bits of the codes alone per weight: stages * code_bits / d, or the trellis's rate."""
        return self.trellis_rate or self.stages * self.code_bits / self.d

    @property
    def version(self) -> int:
        """The oldest version of the JSON form that has all keys and values of this spec."""
        for version in range(SPEC_VERSION, 1, -1):
            if any(getattr(self, key) != DEFAULTS[key] for key in _ADDED[version]):
                return version
        return 2 if self.codebook_dtype == "int8" else 1

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, version included."""
        values = {"version": self.version, **dataclasses.asdict(self)}
        return {key: value for key, value in values.items() if key in keys_of(self.version)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantSpec:
        """The inverse of ``to_json``.

        Raises:
            SpecError: unknown version, unknown key, or a value out of range.
        """
        values = dict(data)
        version = values.pop("version", SPEC_VERSION)
        if not is_int(version, 1, SPEC_VERSION):
            raise SpecError(
                f"spec version {version!r} is not known; this dpq reads 1 to {SPEC_VERSION}"
            )
        unknown = sorted(set(values) - keys_of(version))
        if unknown:
            names = ", ".join(f.name for f in dataclasses.fields(cls) if f.name in keys_of(version))
            raise SpecError(f"spec: unknown key {', '.join(unknown)}; known: {names}")
        for key, kind in NESTED.items():
            if isinstance(values.get(key), Mapping):
                values[key] = kind(**require_fields(kind, values[key], key))
        return cls(**values)


NESTED: dict[str, type] = {
    "kmeans": KMeansSpec,
    "pool": PoolSpec,
    "assignment": AssignmentSpec,
}
"""Fields that are specs themselves -> their classes."""

_ADDED = {
    2: ("stages", "pool", "group_scale", "permute", "transform", "assignment"),
    3: ("trellis_rate",),
}
"""Version of the JSON form -> the keys that came with it."""

DEFAULTS = dataclasses.asdict(QuantSpec()) | {"pool": PoolSpec(), "assignment": AssignmentSpec()}


def keys_of(version: int) -> set[str]:
    """The keys that one version of the JSON form has, ``version`` included."""
    added = {key for since, keys in _ADDED.items() if since > version for key in keys}
    return {"version", *(f.name for f in dataclasses.fields(QuantSpec))} - added
