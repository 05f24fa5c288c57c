"""Families of language models: their layers, sensitive tensors, hidden units."""
