"""Marked names of activations, which make a library without dpq refuse an artifact.

transformers skips a quantization method that it does not know: it warns and returns random weights.
But an activation function that it does not know is an error on every way to a model, and the error
shows the name, which is free text. So the ``config.json`` of an artifact has its activation written
with a mark that says what to import, and importing the adapter adds the marked names to the
library's table of activations. Where a config names no activation, it names a marked implementation
of attention instead, which is an error as well, and which the adapter's quantizer takes out again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

_MARK_BEGINS = " (dpq artifact: "

ACTIVATION_KEYS = (
    "hidden_act",  # CLIP, BERT, Qwen, Llama
    "hidden_activation",  # Gemma
    "activation_function",  # GPT-2
    "activation",  # Falcon
    "dense_act_fn",  # T5
    "mlp_hidden_act",  # Nemotron-H
)
"""Keys by which configs of transformers name an activation."""

ATTENTION_KEY = "attn_implementation"
"""Key by which configs of transformers name an implementation of attention."""

_ATTENTION = "eager"
"""The implementation that every model of transformers has."""

_T5 = "feed_forward_proj"
"""T5 derives ``dense_act_fn`` from this key where the config does not give it."""


class ActivationMark:
    """The text that an adapter appends to the names of activations.

    Artifacts carry it, so it must never change.
    """

    def __init__(self, package: str) -> None:
        """Make the mark that asks for ``import package``."""
        self._mark = f"{_MARK_BEGINS}import {package} first)"

    def add(self, activation: str) -> str:
        """The marked name of an activation, as artifacts write it."""
        return activation if activation.endswith(self._mark) else activation + self._mark

    def remove(self, activation: str) -> str:
        """The name of an activation that the library itself knows (the inverse of ``add``)."""
        return activation.removesuffix(self._mark)

    def add_to_json(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a ``config.json`` with marked activations, in nested configs as well.

        One that names no activation gets a marked implementation of attention.
        """
        marked = self._marked_activations(config)
        if not self._occurs_in(marked):
            marked[ATTENTION_KEY] = self.add(_ATTENTION)
        return marked

    def _marked_activations(self, config: Mapping[str, Any]) -> dict[str, Any]:
        marked: dict[str, Any] = {
            key: self._marked_activations(value) if isinstance(value, dict) else value
            for key, value in config.items()
        }
        projection = config.get(_T5)
        if isinstance(projection, str):
            gated = projection == "gated-gelu"
            marked.setdefault(
                "dense_act_fn", "gelu_new" if gated else projection.rpartition("-")[2]
            )
        for key in ACTIVATION_KEYS:
            if isinstance(name := marked.get(key), str):
                marked[key] = self.add(name)
        return marked

    def _occurs_in(self, config: Mapping[str, Any]) -> bool:
        return any(
            self._occurs_in(value)
            if isinstance(value, dict)
            else isinstance(value, str) and value.endswith(self._mark)
            for value in config.values()
        )

    def remove_from_json(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a ``config.json`` without marks, in nested configs as well."""
        return {
            key: self.remove_from_json(value)
            if isinstance(value, dict)
            else self.remove(value)
            if isinstance(value, str)
            else value
            for key, value in config.items()
            if not (key == ATTENTION_KEY and self._occurs_in({key: value}))
        }

    def add_to_config(self, config: Any) -> None:
        """Mark the activations of a loaded config of transformers, or its attention, in place."""
        self._rename(config, self.add)
        if not self._occurs_in(config.to_dict()):
            setattr(config, ATTENTION_KEY, self.add(_ATTENTION))

    def remove_from_config(self, config: Any) -> None:
        """Take the marks out of a loaded config of transformers, in place."""
        self._rename(config, self.remove)
        vars(config).pop(ATTENTION_KEY, None)

    def hide_attention(self, config: Any) -> None:
        """Take the mark off the attention that builds a model, but keep it for saving."""
        attention = config._attn_implementation
        if isinstance(attention, str) and attention.endswith(self._mark):
            config._attn_implementation = self.remove(attention)
            setattr(config, ATTENTION_KEY, attention)

    def _rename(self, config: Any, rename: Callable[[str], str]) -> None:
        for key in ACTIVATION_KEYS:
            if isinstance(name := getattr(config, key, None), str):
                setattr(config, key, rename(name))
        for value in vars(config).values():
            if hasattr(value, "to_dict") and hasattr(value, "model_type"):
                self._rename(value, rename)

    def register_in(self, activations: MutableMapping[str, Any]) -> None:
        """Make every activation of a library's table known by its marked name too."""
        for name, function in list(activations.items()):
            if _MARK_BEGINS not in name:
                activations[self.add(name)] = function
