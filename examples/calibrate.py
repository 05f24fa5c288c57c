"""Train a compressed diffusion model on trajectories that the uncompressed one draws."""

import dpq

SOURCE = "builtin:tiny-dit"

dpq.compress(SOURCE, "before", bits=2, data=False, iterations=2, probe=False)

# A real run takes hundreds of steps; these few show how it is done.
done = dpq.calibrate(
    "before",
    "after",
    steps=4,
    mode="end",
    trajectories=2,
    sampling_steps=4,
    batch_size=2,
    validation_samples=2,
)
print(done.table())
