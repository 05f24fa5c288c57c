"""Pictures of Gaussian splats, on the CPU by kernels of our own, on a GPU by gsplat."""

from dpq_gaussian.rendering.render import drawing_device, render
from dpq_gaussian.rendering.types import Rendered, RenderOptions, Splats

__all__ = ["RenderOptions", "Rendered", "Splats", "drawing_device", "render"]
