"""Uncompressed and compressed models on disk: found, checked, and loaded by transformers."""
