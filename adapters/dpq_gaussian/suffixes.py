"""Suffixes of splat files."""

READABLE = (".ply", ".compressed.ply", ".splat", ".spz", ".sog")
"""Suffixes of the files that can be read."""

ELSEWHERE = (".ksplat", ".lcc", ".glb", ".gltf", ".mjs", ".csv")
"""Suffixes of splat files that other tools convert."""
