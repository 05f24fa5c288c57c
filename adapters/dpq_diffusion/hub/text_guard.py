"""The mark of text encoders in artifacts, so that no loader without dpq takes them.

transformers skips a quantization that it does not know, warns, and returns random weights; an
activation that it does not know is an error (``dpq_hf.activation_mark``).
"""

from __future__ import annotations

from collections.abc import Mapping

from dpq_core.errors import ANY, Hint, SourceError
from dpq_diffusion.folders import CONFIG, Component
from dpq_hf.activation_mark import ACTIVATION_KEYS, ActivationMark

MARK = ActivationMark("dpq_diffusion")


def check_markable(components: Mapping[str, Component]) -> None:
    """Refuse a component whose config could not be marked, before it is compressed.

    Raises:
        SourceError: a component of transformers names no activation.
    """
    for part in components.values():
        if "_class_name" not in part.config and MARK.add_to_json(part.config) == part.config:
            raise SourceError(
                f"{part.folder / CONFIG}: names no activation ({', '.join(ACTIVATION_KEYS)}), so "
                "nothing would stop transformers without dpq from loading random weights",
                Hint.of("leave this component out of {}", components=ANY),
            )
