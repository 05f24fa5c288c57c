"""Where diffusion models come from: located, opened, read by names and shapes."""
