"""Registration of dpq with diffusers, and with transformers for text encoders, on their import.

Neither has entry points for quantizers, so ``import dpq_diffusion`` has to register. A user who
forgets it is told so: diffusers refuses an unknown ``quant_method``, and transformers, which only
warns of one, what the config of an artifact's text encoder names with a mark.
"""

from __future__ import annotations

import importlib

from dpq_hf import peft_methods
from dpq_hf.activation_mark import ActivationMark
from dpq_hf.import_hook import run_after_import

_DIFFUSERS = "diffusers.quantizers.auto"
_TRANSFORMERS = "transformers.quantizers.auto"
"""They hold the tables of quantizers; every ``from_pretrained`` imports them."""

_MODELS = "diffusers.models.modeling_utils"
"""Holds the base class of models."""

_PIPELINES = "diffusers.pipelines.pipeline_utils"
"""Holds ``DiffusionPipeline``, which looks for pipelines by name in ``diffusers``."""

MARK = ActivationMark("dpq_diffusion")
"""Marks the configs of text encoders in artifacts (``dpq_hf.activation_mark``)."""


def register() -> None:
    """Register with the loaded libraries, and with the others once they are loaded; idempotent."""
    run_after_import(_DIFFUSERS, _with_diffusers)
    run_after_import(_TRANSFORMERS, _with_transformers)
    run_after_import(_MODELS, _with_models)
    run_after_import(_PIPELINES, _with_pipelines)
    peft_methods.register()


def _with_diffusers() -> None:
    importlib.import_module("dpq_diffusion.hub.quantizer")  # enters itself in the tables, once


def _with_models() -> None:
    importlib.import_module("dpq_diffusion.hub.model_methods").register()


def _with_transformers() -> None:
    importlib.import_module("dpq_diffusion.hub.text_quantizer")


def _with_pipelines() -> None:
    importlib.import_module("dpq_diffusion.class_pipelines")  # enter themselves, as in the tables
