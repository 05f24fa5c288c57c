"""dpq_core: a domain-agnostic product quantization engine (tensors in, tensors out)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpq_core.spec import QuantSpec

if TYPE_CHECKING:
    from dpq_core.in_memory import quantize_

__version__ = "0.2.0"

__all__ = ["QuantSpec", "quantize_"]


def __getattr__(name: str) -> Any:
    """``quantize_`` needs torch, which ``dpq --help`` must not wait for."""
    if name == "quantize_":
        from dpq_core.in_memory import quantize_

        return quantize_
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
