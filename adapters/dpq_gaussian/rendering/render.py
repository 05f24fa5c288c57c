"""The renderer: one picture of a scene, on the CPU or a GPU."""

from __future__ import annotations

import torch

from dpq_core.device import resolve
from dpq_core.errors import SpecError
from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.rendering import gpu
from dpq_gaussian.rendering.types import Rendered, RenderOptions, Splats
from dpq_gaussian.scene import Scene


def render(scene: Scene | Splats, camera: Camera, options: RenderOptions | None = None) -> Rendered:
    """Draws a scene as a camera sees it, by the tile-based splatting of Kerbl et al. 2023.

    On the CPU by kernels of our own, with any number of threads and the same result; where the
    tensors are on a GPU, by gsplat. Differentiable with respect to the tensors of ``Splats``.

    Args:
        scene: a `Scene` (copied at every call) or `Splats`, whose device is used.
        camera: where from.
        options: background, anti-aliasing, near plane, harmonics.

    Returns:
        The picture, and what each Gaussian contributed.

    Raises:
        AdapterError: the tensors are on a GPU and gsplat is not installed.
    """
    splats = scene if isinstance(scene, Splats) else Splats.of(scene)
    options = options or RenderOptions()
    if splats.positions.is_cuda:
        return gpu.render_gpu(splats, camera, options)
    from dpq_gaussian.rendering.cpu import render_cpu  # compiles kernels

    return render_cpu(splats, camera, options)


def drawing_device(name: str) -> torch.device:
    """Resolves the device to draw on; ``auto`` is the CPU where gsplat is missing.

    Raises:
        SpecError: the name is unknown, this machine has no such device, or it cannot draw.
    """
    if name == "auto" and not gpu.available():
        return torch.device("cpu")
    device = resolve(name)
    if device.type not in ("cpu", "cuda"):
        raise SpecError(f"device {name!r} cannot draw Gaussians; try auto, cpu or cuda")
    return device
