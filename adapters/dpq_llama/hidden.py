"""The hidden units of a Llama whose order is free."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from dpq_core.tensor.hidden_axes import HiddenAxis, Producer

_DOWN = re.compile(r"((?:model\.)?layers\.\d+\.mlp\.)down_proj\.weight")


def hidden_axes(names: Collection[str]) -> Iterator[HiddenAxis]:
    """The inner units of each MLP, ``down(silu(gate(x)) * up(x))``.

    The columns of ``o_proj`` are left out: they could only change places within their heads, and a
    permutation over all of them, stored, lowers its error by more.

    Args:
        names: of the checkpoint's tensors.
    """
    for match in map(_DOWN.fullmatch, names):
        if match:
            inner = [f"{match[1]}{layer}_proj" for layer in ("gate", "up")]
            weights = [f"{path}.weight" for path in inner]
            biases = [f"{path}.bias" for path in inner if f"{path}.bias" in names]
            yield HiddenAxis(consumer=match[0], producers=tuple(map(Producer, [*weights, *biases])))
