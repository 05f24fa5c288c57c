"""Entropy coding of integers, for adapters that write a format of their own.

``coding``  symbols by context models: encoding and decoding
``fit``     learning context models
``stored``  context models as bytes, and back with every check
``varint``  whole numbers as bytes (LEB128)
"""
