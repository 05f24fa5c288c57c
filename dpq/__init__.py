"""dpq: product quantization of generative models, 1 to 4 bits per weight."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dpq_core.spec import QuantSpec
from dpq_core.version import __version__

if TYPE_CHECKING:
    from dpq_core.jobs.in_memory import quantize_

__all__ = ["QuantSpec", "__version__", "quantize_"]

_LAZY = {"quantize_": "dpq_core.jobs.in_memory"}
"""Public name -> the module that defines it; imported on first use, because it needs torch."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
