"""Original DiT and LDM checkpoints turned into the folders of diffusers."""
