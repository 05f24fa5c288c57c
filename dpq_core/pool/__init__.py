"""Codebook pools: all codebooks of a tensor as indices into one set of vectors.

A new way to build a pool is added here.

``methods``  ``greedy`` and ``wkmeans``: codebooks in, pool and indices out
``refine``   codes, indices and pool in turns, on the subvectors themselves
``size``     how large a pool is, and whether one pays
"""
