"""Cameras: pinholes and their poses, read from files or set up around a scene."""

from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.cameras.reading import read_cameras, select
from dpq_gaussian.cameras.split import held_out

__all__ = ["Camera", "held_out", "read_cameras", "select"]
