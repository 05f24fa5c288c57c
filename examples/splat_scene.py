"""Compress a splat scene into one file, and export it to what viewers open."""

import dpq

SOURCE = "builtin:tiny-scene"  # or a .ply, .splat, .spz, .compressed.ply or .sog file

dpq.compress(SOURCE, "scene.dpq", preset="balanced")
print(dpq.inspect("scene.dpq").table())

done = dpq.export("scene.dpq", "again.ply")
print(f"{done.nbytes:,} bytes of {done.to}", *done.notes, sep="\n")
