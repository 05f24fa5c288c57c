"""The oracle of the rasteriser: every pixel against every Gaussian, in plain torch.

Differentiable by autograd, in float32 or float64, slow: for small pictures of small scenes. The
same decisions as the fast paths: alpha below 1/255 adds nothing and alpha is at most 0.999, a pixel
stops before its transmittance falls to 1e-4 (as gsplat), positions are linearised within 1.3 times
the field of view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpq_gaussian.cameras.camera import Camera
from dpq_gaussian.rendering import harmonics as sh
from dpq_gaussian.rendering.constants import DILATION, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from dpq_gaussian.rendering.types import Rendered, RenderOptions, Splats


def render_reference(
    splats: Splats, camera: Camera, options: RenderOptions | None = None
) -> Rendered:
    """Draws splats in plain torch, in the dtype of ``splats`` (see ``rendering.render``).

    ``means2d`` is the projected centres ``[N, 2]``: ask for their gradient with ``retain_grad``.
    """
    options = options or RenderOptions()
    dtype = splats.positions.dtype
    turn = torch.from_numpy(camera.rotation).to(dtype)
    seen = splats.positions @ turn.T + torch.from_numpy(camera.translation).to(dtype)
    in_front = seen[:, 2] > options.near
    safe = torch.where(in_front[:, None], seen, torch.ones_like(seen))  # no NaN gradients behind
    depth = safe[:, 2]
    lens = torch.tensor([camera.fx, camera.fy], dtype=dtype)
    centre = torch.tensor([camera.cx, camera.cy], dtype=dtype)
    means = safe[:, :2] / depth[:, None] * lens + centre
    covariance = _covariance(splats, safe, turn, camera)
    opacity = torch.sigmoid(splats.opacity_logits)
    dilated = covariance + DILATION * torch.eye(2, dtype=dtype)
    whole = torch.linalg.det(dilated)
    if options.antialiased:
        opacity = opacity * (torch.linalg.det(covariance).clamp_min(1e-30) / whole).sqrt()
    eye = torch.from_numpy(camera.centre).to(dtype)
    colours = _colours(splats, eye, min(options.sh_degree, splats.sh_degree))

    order = torch.argsort(depth, stable=True)
    order = order[in_front[order]]
    rows, columns = torch.meshgrid(
        torch.arange(camera.height), torch.arange(camera.width), indexing="ij"
    )
    pixels = torch.stack([columns, rows], -1).reshape(-1, 1, 2).to(dtype) + 0.5
    offsets = pixels - means[order]  # [HW, N, 2]
    precise = torch.linalg.inv(dilated[order])
    exponent = -0.5 * torch.einsum("pni,nij,pnj->pn", offsets, precise, offsets)
    weights, through = _weights((opacity[order] * exponent.exp()).clamp_max(MAX_ALPHA))
    size = (camera.height, camera.width)
    background = torch.tensor(options.background, dtype=dtype)
    colour = weights @ colours[order] + through[:, None] * background
    per_gaussian = torch.zeros(len(splats), dtype=dtype)
    per_gaussian[order] = weights.detach().sum(0)
    return Rendered(
        colour=colour.view(*size, 3),
        alpha=(1 - through).view(size),
        depth=(weights @ depth[order]).view(size),
        weights=per_gaussian,
        radii=_radii(dilated, opacity, in_front).detach(),
        means2d=means,
    )


def _covariance(splats: Splats, seen: Tensor, turn: Tensor, camera: Camera) -> Tensor:
    """Undilated covariances of the splats in square pixels, ``[N, 2, 2]``."""
    w, x, y, z = torch.nn.functional.normalize(splats.rotations, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    rotation = torch.stack([torch.stack(row, -1) for row in rows], -2)
    axes = rotation * splats.log_scales.exp()[:, None, :]
    inverse = 1 / seen[:, 2]
    margin_x, margin_y = 0.15 * camera.width / camera.fx, 0.15 * camera.height / camera.fy
    rx = (seen[:, 0] * inverse).clamp(
        -camera.cx / camera.fx - margin_x, (camera.width - camera.cx) / camera.fx + margin_x
    )
    ry = (seen[:, 1] * inverse).clamp(
        -camera.cy / camera.fy - margin_y, (camera.height - camera.cy) / camera.fy + margin_y
    )
    zero = torch.zeros_like(inverse)
    jacobian = torch.stack(
        [
            torch.stack([camera.fx * inverse, zero, -camera.fx * rx * inverse], -1),
            torch.stack([zero, camera.fy * inverse, -camera.fy * ry * inverse], -1),
        ],
        -2,
    )
    footprint = jacobian @ turn @ axes
    return footprint @ footprint.transpose(-1, -2)


def _colours(splats: Splats, eye: Tensor, degree: int) -> Tensor:
    """Colours seen from ``eye``, ``[N, 3]``."""
    x, y, z = torch.nn.functional.normalize(splats.positions - eye, dim=-1).unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    bands = [
        [-sh.C1 * y, sh.C1 * z, -sh.C1 * x],
        [
            sh.C2[0] * x * y,
            sh.C2[1] * y * z,
            sh.C2[2] * (2 * zz - xx - yy),
            sh.C2[1] * x * z,
            sh.C2[3] * (xx - yy),
        ],
        [
            sh.C3[0] * y * (3 * xx - yy),
            sh.C3[1] * x * y * z,
            sh.C3[2] * y * (4 * zz - xx - yy),
            sh.C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            sh.C3[2] * x * (4 * zz - xx - yy),
            sh.C3[4] * z * (xx - yy),
            sh.C3[0] * x * (xx - 3 * yy),
        ],
    ]
    colour = 0.5 + sh.C0 * splats.sh_dc
    basis = [term for band in bands[:degree] for term in band]
    if basis:
        rest = splats.sh_rest[:, : len(basis)]
        colour = colour + torch.einsum("nm,nmc->nc", torch.stack(basis, -1), rest)
    return colour.clamp_min(0)


def _weights(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[P, N]`` and final transmittance ``[P]`` from alphas in order of depth."""
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=1)
    # A splat that would close the pixel is left out, and so are all behind it.
    kept = torch.cumsum((alpha > 0) & (after <= MIN_TRANSMITTANCE), dim=1) == 0
    alpha = alpha * kept
    before = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha], 1), dim=1)
    return alpha * before[:, :-1], before[:, -1]


def _radii(dilated: Tensor, opacity: Tensor, in_front: Tensor) -> Tensor:
    """Pixels to the farthest point where alpha reaches its threshold, on or off the picture."""
    stretch = (2 * (opacity / MIN_ALPHA).log()).clamp_min(0).sqrt()
    radii: Tensor = stretch * torch.linalg.eigvalsh(dilated)[:, -1].sqrt() * in_front
    return radii
