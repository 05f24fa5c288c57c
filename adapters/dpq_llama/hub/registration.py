"""Registers dpq with transformers, without importing transformers before it is needed.

transformers has no entry points for quantizers, so ``import dpq_llama`` has to register. Importing
``transformers.quantizers`` costs two to three seconds, which ``dpq compress`` should not pay; so
where transformers is not loaded yet, an import hook registers at the moment it is.
"""

from __future__ import annotations

import importlib

from dpq_hf.guard import Guard
from dpq_hf.import_hook import after_import

_TARGET = "transformers.quantizers.auto"
"""Holds the tables of quantizers; every ``from_pretrained`` imports it."""

GUARD = Guard("dpq_llama")
"""Marks the activation's name in the config of an artifact.

Without ``import dpq_llama`` transformers only warns about the unknown quantization and returns a
model with random weights; with a marked activation it refuses (``dpq_hf.guard``).
"""


def marked(activation: str) -> str:
    """The activation's name as artifacts write it."""
    return GUARD.marked(activation)


def unmarked(activation: str) -> str:
    """The inverse of ``marked``: the name that transformers knows."""
    return GUARD.unmarked(activation)


def register() -> None:
    """Register with transformers now if it is loaded, else as soon as it is. Idempotent."""
    after_import(_TARGET, _register_now)


def _register_now() -> None:
    importlib.import_module("dpq_llama.hub.quantizer")  # enters itself in the tables, once
