"""Bits of a spec: the sizes of the presets, and what a trellis needs of the other fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpq_core.errors import SpecError

PRESET_D = {1: 8, 2: 4, 3: 3, 4: 2}
"""Subvector length per nominal bit width, K = 256 (DPQ, section 1.2 of the paper's supplement).

"3 bits" is really 8/3 = 2.67 bits of codes per weight; reports print the true figure.
"""

TRELLIS_D = 2
"""Subvector length of trellis codes."""

TRELLIS_SIZES = (1024,)
"""Numbers of codewords for which trellis codes have codebooks."""

MAX_TRELLIS_RATE = 6.0
"""Code bits per weight of a trellis code at most."""


def suits_trellis(spec: Any) -> bool:
    """Whether all fields of a ``QuantSpec`` but the rate are those of a trellis code."""
    return bool(
        spec.d == TRELLIS_D
        and spec.K in TRELLIS_SIZES
        and spec.orientation == "input"
        and spec.stages == 1
        and getattr(spec.pool, "method", "") == "none"
        and not (spec.permute or spec.group_scale)
    )


def with_trellis(trellis_rate: float, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a spec, and what a trellis that they begin or end brings along.

    Args:
        trellis_rate: of the spec that is changed.
        changes: fields of the spec, or ``bits``: 1, 2, 3 or 4, as a rate of its trellis or as the
            d and K of a preset.

    Raises:
        SpecError: ``bits`` is not 1, 2, 3 or 4.
    """
    fields = dict(changes)
    if "bits" in fields:
        bits = fields.pop("bits")
        if bits not in PRESET_D:
            raise SpecError(f"bits must be 1, 2, 3 or 4, not {bits!r}; or give d and K")
        learned = {"d": PRESET_D[bits], "K": 256}
        fields |= {"trellis_rate": float(bits)} if trellis_rate else learned
    if fields.get("trellis_rate"):
        return {"d": TRELLIS_D, "K": TRELLIS_SIZES[-1], "permute": False, **fields}
    if trellis_rate and fields.keys() & {"d", "K", "trellis_rate"}:
        return {"permute": True, **fields, "trellis_rate": 0.0}
    return fields
