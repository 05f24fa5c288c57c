"""Compress a diffusion model, and draw the same seeds before and after."""

import dpq

SOURCE = "builtin:tiny-dit"  # or a diffusers folder, a hub id, an original DiT or LDM checkpoint

report = dpq.compress(SOURCE, "small-dit", bits=3)
print(f"{report.source_nbytes:,} -> {report.nbytes:,} bytes")

samples = dpq.sample(
    "small-dit", baseline=SOURCE, output="pictures", count=4, columns=4, sampling_steps=4
)
print(*samples.files, sep="\n")
