"""Marks the activations in a text encoder's config, so that no loader without dpq takes it.

transformers skips a quantization that it does not know, warns, and returns random weights; an
activation that it does not know is an error (``dpq_hf.guard``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpq_core.errors import SourceError
from dpq_diffusion.folders import CONFIG, Component
from dpq_hf.guard import Guard

GUARD = Guard("dpq_diffusion")

_ACTIVATIONS = (
    "hidden_act",  # CLIP, BERT, Qwen, Llama
    "hidden_activation",  # Gemma
    "activation_function",
    "dense_act_fn",  # T5
)
_T5 = "feed_forward_proj"
"""T5 derives ``dense_act_fn`` from it, where the config does not say otherwise."""


def guarded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``config.json`` with marked activations, in nested configs as well."""
    result: dict[str, Any] = {
        k: guarded(v) if isinstance(v, dict) else v for k, v in config.items()
    }
    proj = config.get(_T5)
    if isinstance(proj, str):
        known = "gelu_new" if proj == "gated-gelu" else proj.rpartition("-")[2]
        result.setdefault("dense_act_fn", known)
    for key in _ACTIVATIONS:
        if isinstance(name := result.get(key), str):
            result[key] = GUARD.marked(name)
    return result


def check_guardable(components: Mapping[str, Component]) -> None:
    """Refuse what could not be marked, before it is compressed.

    Raises:
        SourceError: a component of transformers names no activation.
    """
    for part in components.values():
        if "_class_name" not in part.config and guarded(part.config) == part.config:
            raise SourceError(
                f"{part.folder / CONFIG}: names no activation ({', '.join(_ACTIVATIONS)}), so "
                "nothing would stop transformers without dpq from loading random weights; leave "
                "this component out of --components"
            )


def unguard(config: Any) -> None:
    """Take the marks out of a loaded config of transformers, in place."""
    for key in _ACTIVATIONS:
        if isinstance(value := getattr(config, key, None), str):
            setattr(config, key, GUARD.unmarked(value))
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            unguard(value)
