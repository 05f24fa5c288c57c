"""Additive codebooks: a subvector is the sum of one codeword from each of several stages.

``stages``  residual k-means for a start, and the encoder for Hessian-aware assignment
``fit``     codebooks by least squares and new codes, in turns
``beam``    encoding: which codewords, one per stage, add up to a subvector
"""
