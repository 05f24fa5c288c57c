"""Registration of dpq with transformers, without importing transformers before it is needed.

transformers has no entry points for quantizers, so ``import dpq_llama`` has to register. Importing
``transformers.quantizers`` costs two to three seconds, which ``dpq compress`` should not pay; so
where transformers is not loaded yet, an import hook registers at the moment it is.
"""

from __future__ import annotations

import importlib

from dpq_hf import peft_methods
from dpq_hf.activation_mark import ActivationMark
from dpq_hf.import_hook import run_after_import

_QUANTIZER_TABLES = "transformers.quantizers.auto"
"""Holds the tables of quantizers; every ``from_pretrained`` imports it."""

_MODELS = "transformers.modeling_utils"
"""Holds the base class of models, and imports the tables while it is imported itself."""

MARK = ActivationMark("dpq_llama")
"""Marks the activation in the config of an artifact.

Without ``import dpq_llama`` transformers only warns about the unknown quantization and returns a
model with random weights; with a marked activation it refuses (``dpq_hf.activation_mark``).
"""


def register() -> None:
    """Register with transformers and peft, now or as soon as they are loaded; idempotent."""
    run_after_import(_QUANTIZER_TABLES, _register_now)
    run_after_import(_MODELS, _count_weights)
    peft_methods.register()


def _register_now() -> None:
    importlib.import_module("dpq_llama.hub.quantizer")  # enters itself in the tables, once


def _count_weights() -> None:
    importlib.import_module("dpq_hf.library_methods").count_in_transformers()
