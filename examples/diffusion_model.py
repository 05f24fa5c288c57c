"""Compress a diffusion model, and draw the same seeds before and after."""

import dpq

SOURCE = "builtin:tiny-dit"  # or a diffusers folder, a hub id, an original DiT or LDM checkpoint

# Without data it takes seconds; left out, the model draws images and looks at its layers meanwhile.
report = dpq.compress(SOURCE, "small-dit", bits=3, data=False)
print(f"{report.source_nbytes:,} -> {report.nbytes:,} bytes")

samples = dpq.sample(
    "small-dit", baseline=SOURCE, output="pictures", count=4, columns=4, sampling_steps=4
)
print(*samples.files, sep="\n")
