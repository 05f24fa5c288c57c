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

SPEC_VERSION = 1
"""Version of the spec's JSON form; raised when the meaning of a key changes."""

MAX_D = 64
MAX_K = 65_536

PRESET_D = {1: 8, 2: 4, 3: 3, 4: 2}
"""Subvector length per nominal bit width, K = 256 (DPQ, section 1.2 of the paper's supplement).

"3 bits" is really 8/3 = 2.67 bits of codes per weight; reports print the true figure.
"""

SCOPES = ("auto", "tensor", "subspace")
ORIENTATIONS = ("input", "output", "auto")
CONV_LAYOUTS = ("spatial", "channel")
INITS = ("random", "kmeans++")
CODEBOOK_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class KMeansSpec:
    """How codebooks are learned (METHODS: SR-C k-means of PQF, section 3.3 of arXiv 2010.15703).

    Attributes:
        iterations: number of Lloyd iterations with stochastic relaxation (noise in the update).
        tail: noiseless Lloyd iterations after them.
        noise_power: p of the noise schedule (1 - i/I)^p; 0 switches the noise off (plain k-means).
        init: ``random`` (distinct data points) or ``kmeans++``.
    """

    iterations: int = 20
    tail: int = 2
    noise_power: float = 0.5
    init: str = "random"

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        _raise_all(
            "kmeans",
            [
                (_is_int(self.iterations, 0, 100_000), "iterations must be 0..100000"),
                (_is_int(self.tail, 0, 100_000), "tail must be 0..100000"),
                (
                    _is_number(self.noise_power) and 0 <= self.noise_power <= 16,
                    "noise_power must be 0..16",
                ),
                (self.init in INITS, f"init must be one of {', '.join(INITS)}"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """Product quantization of one tensor, seen as a matrix ``[rows, cols]``.

    Attributes:
        d: subvector length, 1..64.
        K: codewords per codebook, 2..65536; a code takes ceil(log2 K) bits.
        scope: who shares a codebook: ``tensor`` (one codebook, classic VQ), ``subspace`` (one per
            column group, PQ), an integer (that many codebooks over adjacent column groups), or
            ``auto`` (as many codebooks as fit in ``codebook_share`` of the code bytes).
        codebook_share: for ``auto``: codebook bytes over code bytes, at most this. Small, because
            bytes buy more in a larger shared codebook than in more codebooks (measured on trained
            weights: +0.2 bits of codebooks lower the error by 7 %, +0.3 bits of K by 30 %).
        orientation: subvectors run along the ``input`` axis (columns) or the ``output`` axis; with
            ``auto`` a plan chooses, tensor by tensor, what takes fewer bytes, else ``input``.
        conv_layout: a convolution kernel is flattened ``spatial`` (Cin, kh, kw) or ``channel``
            (kh, kw, Cin) before it is cut into subvectors.
        row_scale: divide each output row by its RMS before k-means; stored as float16 ``[rows]``.
        codebook_dtype: stored dtype of the codebooks.
        kmeans: how the codebooks are learned.
        seed: the only source of randomness, mixed with the tensor's name.
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

    def __post_init__(self) -> None:
        """Check every field and report all mistakes at once."""
        _raise_all(
            "spec",
            [
                (_is_int(self.d, 1, MAX_D), f"d must be 1..{MAX_D}, not {self.d!r}"),
                (_is_int(self.K, 2, MAX_K), f"K must be 2..{MAX_K}, not {self.K!r}"),
                (
                    self.scope in SCOPES or _is_int(self.scope, 1, 2**31),
                    f"scope must be {', '.join(SCOPES)} or a number of codebooks, "
                    f"not {self.scope!r}",
                ),
                (
                    _is_number(self.codebook_share) and 0 < self.codebook_share <= 16,
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
                (_is_int(self.seed, 0, 2**63 - 1), "seed must be 0..2^63-1"),
            ],
        )

    @classmethod
    def preset(cls, bits: int, **changes: Any) -> QuantSpec:
        """The paper's preset for a nominal width of 1, 2, 3 or 4 bits, with changes applied.

        Raises:
            SpecError: ``bits`` is not 1, 2, 3 or 4, or a change is invalid.
        """
        if bits not in PRESET_D:
            raise SpecError(f"bits must be 1, 2, 3 or 4, not {bits!r}; or give d and K yourself")
        return cls(d=PRESET_D[bits]).replace(**changes)

    def replace(self, **changes: Any) -> QuantSpec:
        """A copy with some fields changed; unknown names raise SpecError."""
        return QuantSpec.from_json({**self.to_json(), **changes})

    @property
    def code_bits(self) -> int:
        """Bits of one stored code: ceil(log2 K)."""
        return max(1, math.ceil(math.log2(self.K)))

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, version included."""
        return {"version": SPEC_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantSpec:
        """The inverse of ``to_json``.

        Raises:
            SpecError: unknown version, unknown key, or a value out of range.
        """
        values = dict(data)
        version = values.pop("version", SPEC_VERSION)
        if version != SPEC_VERSION:
            raise SpecError(f"spec version {version!r} is not known; this dpq reads {SPEC_VERSION}")
        kmeans = values.get("kmeans", KMeansSpec())
        if isinstance(kmeans, Mapping):
            kmeans = KMeansSpec(**_known(KMeansSpec, kmeans, "kmeans"))
        return cls(**{**_known(cls, values, "spec"), "kmeans": kmeans})


def _known(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise SpecError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(names)}")
    return dict(values)


def _raise_all(where: str, checks: list[tuple[bool, str]]) -> None:
    wrong = [message for ok, message in checks if not ok]
    if wrong:
        raise SpecError(f"{where}: " + "; ".join(wrong))


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
