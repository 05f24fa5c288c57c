"""The basis in which a matrix is quantized: rotated, reordered, scaled; exactly invertible.

A new transform or order of the columns is added here.

``selection``       which basis and which scales a matrix gets, and its scaled subvectors
``frame``           into that basis and back, for weights, Hessians and activations
``transform``       the randomised Hadamard transform of a matrix
``hadamard``        its fast orthonormal factor, for every length
``permute``         permutations of the columns that make codebooks better
``permute_start``   greedy orders, from which the search starts
``permute_search``  local search over swaps of columns
``gain``            row scales that make up for the shrinkage of quantized rows
"""
