"""Replacement of dead codewords: those that no subvector uses any more.

``codewords``    the codewords of one weight: their age, and a reservoir of badly served subvectors
``replacement``  which vectors and slots are replaced, and by which subvectors
``reservoir``    a sample of badly served subvectors, drawn by priority
"""
