"""dpq_core: a domain-agnostic product quantization engine (tensors in, tensors out)."""

__version__ = "0.1.0"
