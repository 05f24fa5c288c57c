"""The hidden units of diffusion models and text encoders whose order is free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dpq_core.tensor.hidden_axes import HiddenAxis, Producer

_PAIRS = (
    (r"\bffn?(?:_context)?\.net\.2", ("net.0.proj",)),  # FeedForward of diffusers
    (r"\blayers\.\d+\.(?:mlp\.)?fc2", ("fc1",)),  # CLIP, and the LDM's text encoder
    (r"\bDenseReluDense\.wo", ("wi", "wi_0", "wi_1")),  # T5
)
"""The end of a consumer's path -> the layers beside it that make its inputs."""

Shapes = Mapping[str, tuple[int, ...]]


def hidden_axes(shapes: Shapes) -> Iterator[HiddenAxis]:
    """The inner units of feed-forward layers, between which only activations and gates lie.

    FLUX's single blocks are left out: their ``proj_out`` also sees what attention has made.

    Args:
        shapes: of the checkpoint's tensors, by name.
    """
    for pattern, layers in _PAIRS:
        consumer = re.compile(rf"(?:.*{pattern})\.weight")
        for name, shape in shapes.items():
            if consumer.fullmatch(name) and len(shape) == 2:
                axis = _axis(name, layers, shapes)
                if axis.producers:
                    yield axis


def _axis(consumer: str, layers: tuple[str, ...], shapes: Shapes) -> HiddenAxis:
    """A gated layer makes all values, then all gates: two blocks of rows."""
    home = re.sub(r"(net\.2|fc2|wo)\.weight$", "", consumer)
    made = [f"{home}{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    units = max(1, shapes[consumer][1])
    producers = [
        Producer(name, blocks=2 if shapes[name][0] == 2 * units else 1)
        for name in made
        if shapes.get(name)
    ]
    return HiddenAxis(consumer=consumer, producers=tuple(producers))
