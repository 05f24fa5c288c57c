"""Calibration of a compressed denoiser: on its original's trajectories, images or latents."""
