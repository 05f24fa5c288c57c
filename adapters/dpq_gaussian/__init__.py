"""Gaussian splats for dpq: trained 3D Gaussian Splatting scenes, compressed and rendered."""
