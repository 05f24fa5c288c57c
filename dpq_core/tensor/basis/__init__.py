"""The basis in which a matrix is quantized: rotated, reordered, scaled, and exactly invertible.

A new transform or order of the columns is added here.

``selection``       which basis and which scales a matrix gets, and its scaled subvectors
``frame``           the way into that basis and back, for weights, Hessians and activations
``transform``       randomised Hadamard transform of a matrix
``hadamard``        the fast orthonormal factor of that transform, for every length
``permute``         permutations of the columns that make codebooks fit better
``permute_search``  local search over swaps of columns
``gain``            row scales that make up for the shrinkage of quantized rows
"""
