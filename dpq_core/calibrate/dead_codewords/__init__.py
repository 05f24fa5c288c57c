"""Replacing codewords that no subvector uses any more.

``codewords``    the codewords of one weight: their age, and a reservoir of badly served subvectors
``replacement``  which vectors and slots are replaced, and by what
``reservoir``    a sample of badly served subvectors, drawn by priority
"""
