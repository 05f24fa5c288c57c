"""Dead codewords during calibration, and what takes their place.

``codewords``  the codewords of one weight: how long unused, replaced by what
``revive``     the rule: when is a codeword dead, what replaces it
``reservoir``  a sample of badly served subvectors, kept over the steps
"""
