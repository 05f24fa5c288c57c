"""Trellis codes of one weight: ``rates`` of its groups, and ``encode``, the paths of their windows.

See docs/algorithms.md#trellis.
"""
