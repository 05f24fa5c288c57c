"""The GPU path: ``rasterization`` of gsplat, which is imported only here."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from dpq_core.errors import AdapterError, Hint
from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.rendering.constants import DILATION
from dpq_gaussian.rendering.types import Rendered, RenderOptions, Splats


def available() -> bool:
    """Whether there is a GPU and gsplat to draw with it."""
    return torch.cuda.is_available() and importlib.util.find_spec("gsplat") is not None


def render_gpu(splats: Splats, camera: Camera, options: RenderOptions) -> Rendered:
    """Draws splats on a GPU with gsplat (see ``rendering.render``).

    Raises:
        AdapterError: gsplat is not installed.
    """
    device = splats.positions.device
    degree = min(options.sh_degree, splats.sh_degree)
    terms = (degree + 1) ** 2 - 1
    colours = torch.cat([splats.sh_dc[:, None], splats.sh_rest[:, :terms]], 1)
    image, alpha, info = _rasterize(
        splats,
        camera,
        options,
        colors=colours,
        sh_degree=degree,
        render_mode="RGB+D",
        backgrounds=torch.tensor([options.background], device=device),
    )
    radii = info["radii"][0].float()
    return Rendered(
        colour=image[0, ..., :3],
        alpha=alpha[0, ..., 0],
        depth=image[0, ..., 3],
        weights=_weights(splats, camera, options) if options.weights else torch.empty(0),
        radii=radii.amax(-1) if radii.ndim == 2 else radii,
        means2d=_tap(info["means2d"]),
    )


def _rasterize(
    splats: Splats, camera: Camera, options: RenderOptions, **more: Any
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    try:
        from gsplat import rasterization  # type: ignore[import-not-found]
    except ImportError:
        raise AdapterError(
            "drawing on a GPU needs gsplat: pip install gsplat", Hint.of("or use {}", device="cpu")
        ) from None
    device = splats.positions.device
    view = torch.eye(4)
    view[:3, :3] = torch.from_numpy(camera.rotation)
    view[:3, 3] = torch.from_numpy(camera.translation)
    lens = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
    image, alpha, info = rasterization(
        means=splats.positions,
        quats=splats.rotations,
        scales=splats.log_scales.exp(),
        opacities=splats.opacity_logits.sigmoid(),
        viewmats=view[None].to(device),
        Ks=torch.tensor([lens], dtype=torch.float32, device=device),
        width=camera.width,
        height=camera.height,
        near_plane=options.near,
        eps2d=DILATION,
        packed=False,
        rasterize_mode="antialiased" if options.antialiased else "classic",
        **more,
    )
    return image, alpha, info


def _tap(means: Tensor) -> Tensor | None:
    """A leaf [N, 2] that receives the gradient of the projected centres [1, N, 2]."""
    if not means.requires_grad:
        return None
    leaf = torch.zeros_like(means[0], requires_grad=True)

    def receive(grad: Tensor) -> None:
        leaf.grad = grad[0].clone()

    means.register_hook(receive)  # type: ignore[no-untyped-call]
    return leaf


def _weights(splats: Splats, camera: Camera, options: RenderOptions) -> Tensor:
    """Blending weights of Gaussians: derivatives of the picture's sum by their colours."""
    with torch.enable_grad():
        frozen = Splats(*(tensor.detach() for tensor in splats.tensors()))
        colours = torch.ones((len(splats), 1), device=splats.positions.device, requires_grad=True)
        image, _, _ = _rasterize(frozen, camera, options, colors=colours)
        (weights,) = torch.autograd.grad(image.sum(), colours)
    return weights[:, 0]
