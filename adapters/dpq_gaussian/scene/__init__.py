"""A scene in memory: N Gaussians with their attributes, and checks of their values."""

from dpq_gaussian.scene.gaussians import SH_REST, FloatArray, Scene
from dpq_gaussian.scene.values import ROWS, bad_values, bounded, check_values, repaired, visible

__all__ = [
    "ROWS",
    "SH_REST",
    "FloatArray",
    "Scene",
    "bad_values",
    "bounded",
    "check_values",
    "repaired",
    "visible",
]
