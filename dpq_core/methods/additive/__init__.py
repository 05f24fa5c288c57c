"""Additive codebooks: a subvector is the sum of one codeword from each of several stages.

``stages``  residual k-means as a start, and the encoder for assignment with statistics
``fit``     codebooks by least squares and new codes, in turns
``beam``    beam search for the codewords, one per stage, that add up to a subvector
"""
