"""Codebooks by k-means: first codewords and Lloyd iterations."""
