"""Pools: the codebooks of a weight as indices into one set of vectors."""
