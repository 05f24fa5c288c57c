"""Which tensors are compressed and which hidden units may be reordered, by name and shape alone.

No model is ever instantiated for this: in the models of diffusers and transformers a two-axis
``*.weight`` is a Linear unless its name is that of an embedding, and a four-axis one a Conv2d.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dpq_core.spec import Override, QuantSpec
from dpq_core.tensor.hidden_axes import HiddenAxis, Producer
from dpq_core.tensor.partition import Layout

MIN_WEIGHTS = 4096
"""Least number of weights of a compressed tensor; 256 codewords alone take 1-4 KB."""

_TABLE = re.compile(
    r"(^|[./])(class_embedder\.embedding_table|class_embedding|token_embedding)\.weight$"
)
"""Embeddings that are only ever looked up: classes, and the tokens of CLIP."""

_KEPT = re.compile(
    r"(^|[./])(quantize\.embedding|position_embedding|relative_attention_bias|shared|embed_tokens"
    r"|wte|wpe)\.weight$"
)
"""Embeddings that are used in other ways too: distances to a VQ codebook, tied or biased tables."""

_EMBEDDERS = (
    "pos_embed.proj",  # patch embedding (DiT, PixArt)
    "x_embedder",  # idem (FLUX)
    "conv_in",
    "context_embedder",
    "caption_projection.linear_?",
    "time_embedding.linear_?",
    "add_embedding.linear_?",
    "class_embedding.linear_?",
    "time_text_embed.*",
    "adaln_single.emb.*",
    "transformer_blocks.*.norm1.emb.timestep_embedder.linear_?",
)
"""The first layers, which every step and every token passes, and which are few.

The timestep's are the most sensitive of all (benchmarks/suites/diffusion_policy.py).
"""

_OUTPUTS = (
    "norm_out.linear",
    "proj_out",
    "proj_out_?",  # DiT: final modulation and final projection
    "conv_out",
)
"""The last layers."""

_TABLES = ("*class_embedder.embedding_table", "class_embedding", "*token_embedding")


def layout_of(name: str, shape: tuple[int, ...]) -> Layout | None:
    """The layout of a compressed tensor; None for norms, biases and tables of other uses."""
    if not name.endswith(".weight") or math.prod(shape) < MIN_WEIGHTS or _KEPT.search(name):
        return None
    if len(shape) == 2:
        return Layout.EMBEDDING if _TABLE.search(name) else Layout.LINEAR
    return Layout.CONV if len(shape) == 4 else None


def policy(spec: QuantSpec) -> tuple[Override, ...]:
    """The overrides with more bits per weight for the first and last layers and for tables.

    8 bits for the embedders, or 4 where all others get one bit; at least 4 for the outputs and the
    tables: what came out best at equal bytes (docs/diffusion.md). The patterns match top-level
    layers only, with and without a component before them; the user's own overrides come later and
    win.
    """
    rules: list[tuple[str, dict[str, Any]]] = []
    if spec.scope == "subspace" and spec.orientation == "input":
        rules.append(("*", {"orientation": "auto"}))  # one codebook per d columns, or per d rows
    bits = spec.bits
    if bits < 4:
        rules += [(pattern, {"bits": 4}) for pattern in (*_TABLES, *_OUTPUTS)]
    if bits < 8:
        d = 1 if bits > 1 else 2
        rules += [(pattern, {"d": d, "K": 256}) for pattern in _EMBEDDERS]
    return tuple(
        Override(f"{prefix}{pattern}.weight", changes)
        for pattern, changes in rules
        for prefix in ("", "*/")
    )


_PAIRS = (
    (r"\bffn?(?:_context)?\.net\.2", ("net.0.proj",)),  # FeedForward of diffusers
    (r"\blayers\.\d+\.(?:mlp\.)?fc2", ("fc1",)),  # CLIP, and the LDM's text encoder
    (r"\bDenseReluDense\.wo", ("wi", "wi_0", "wi_1")),  # T5
)
"""The end of a consumer's path -> the layers beside it that make its inputs."""

Shapes = Mapping[str, tuple[int, ...]]


def hidden_axes(shapes: Shapes) -> Iterator[HiddenAxis]:
    """The inner axes of feed-forward layers, across which only activations and gates act.

    FLUX's single blocks are left out: their ``proj_out`` also sees what attention has made.

    Args:
        shapes: shapes of the checkpoint's tensors by name.
    """
    for pattern, layers in _PAIRS:
        consumer = re.compile(rf"(?:.*{pattern})\.weight")
        for name, shape in shapes.items():
            if consumer.fullmatch(name) and len(shape) == 2:
                axis = _axis(name, layers, shapes)
                if axis.producers:
                    yield axis


def _axis(consumer: str, layers: tuple[str, ...], shapes: Shapes) -> HiddenAxis:
    """The axis of one consumer; a gated producer has two blocks of rows, values and gates."""
    home = re.sub(r"(net\.2|fc2|wo)\.weight$", "", consumer)
    made = [f"{home}{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    units = max(1, shapes[consumer][1])
    producers = [
        Producer(name, blocks=2 if shapes[name][0] == 2 * units else 1)
        for name in made
        if shapes.get(name)
    ]
    return HiddenAxis(consumer=consumer, producers=tuple(producers))
