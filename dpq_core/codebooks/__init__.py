"""Codebooks of a tensor's subvectors, learned without data.

Sums of several codewords are in ``dpq_core.additive``, pools in ``dpq_core.pool``.

``kmeans``       k-means over all groups at once, weighted and stochastically relaxed
``kmeans_init``  where k-means starts
``int8``         codebooks of 8-bit values with one scale
"""
