"""Candidate sets: each subvector learns which of its nearest codewords it takes (VQ4DiT).

``weight``    a weight as a mixture of candidates, put in place of a module's own
``training``  trains the mixtures of one block until every choice is made
"""
