"""Torch modules that run on quantized weights; ``reference`` is the oracle of every fast path.

``weight`` holds the stored parts as a module that stands in for a dense parameter (``stand_in``),
and ``decoding`` decodes them; ``product`` multiplies by them; ``operators`` are the doors of
``torch.compile``, ``torch.export`` and autocast; ``linear``, ``embedding`` and ``conv`` are the
layers, with ``layer`` in common, and ``swap`` puts them into models.
"""

from dpq_core.runtime.conv import PQConv2d
from dpq_core.runtime.embedding import PQEmbedding
from dpq_core.runtime.linear import PQLinear
from dpq_core.runtime.weight import PQWeight

__all__ = ["PQConv2d", "PQEmbedding", "PQLinear", "PQWeight"]
