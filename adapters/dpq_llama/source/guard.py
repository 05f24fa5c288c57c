"""The guard of artifacts against loaders without dpq: a config that names what is to be marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpq_hf.activation_mark import ACTIVATION_KEYS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def with_activation(config: Mapping[str, Any], typed: PreTrainedConfig) -> dict[str, Any]:
    """A copy of a ``config.json`` in which the activations of the decoder are written out.

    Args:
        config: content of the file, which may leave out what is the default.
        typed: the same config with its defaults.
    """
    complete, text = dict(config), typed.get_text_config()
    parts = [key for key, value in vars(typed).items() if value is text and key in complete]
    section = dict(complete[parts[0]]) if parts else complete
    names = {key: getattr(text, key, None) for key in ACTIVATION_KEYS}
    used = {key: name for key, name in names.items() if isinstance(name, str)}
    for key, name in used.items():
        section.setdefault(key, name)
    if parts:
        complete[parts[0]] = section
    return complete
