"""Cameras: pinholes and their poses, read from files or set up around a scene."""

from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.cameras.reading import held_out, read_cameras, sampled, select

__all__ = ["Camera", "held_out", "read_cameras", "sampled", "select"]
