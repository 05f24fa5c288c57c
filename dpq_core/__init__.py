"""The engine of dpq: product quantization of tensors, for any domain.

Users import ``dpq``; adapters import the rooms of this package. No names leave it here.
"""
