"""Torch modules that run on quantized weights; ``reference`` is the oracle of every fast path."""

from dpq_core.runtime.conv import PQConv2d
from dpq_core.runtime.embedding import PQEmbedding
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.weight import PQWeight

__all__ = ["PQConv2d", "PQEmbedding", "PQLinear", "PQWeight"]
