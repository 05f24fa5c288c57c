"""Entropy coding of integers, for adapters that write their own file format.

``coding``  symbols by context models: encoding and decoding
``fit``     fitting of context models
``stored``  context models as bytes, read with every check
``varint``  integers as bytes (LEB128)
"""
