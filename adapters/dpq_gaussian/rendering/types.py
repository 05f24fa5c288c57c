"""Inputs, options and results of the renderer."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dpq_core.errors import SpecError
from dpq_gaussian.scene import Scene


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Options of drawing: background, filter, near plane and harmonics.

    Attributes:
        background: red, green and blue in [0, 1] behind the scene.
        antialiased: dim splats by what the dilation of 0.3 square pixels adds to their area
            (Mip-Splatting, Yu et al. 2024), for scenes trained that way.
        near: Gaussians whose centre is no farther than this are not drawn. 0.01 as in gsplat;
            the 0.2 of Kerbl et al.'s code would cut into scenes of objects measured in metres.
        sh_degree: harmonics beyond this degree are ignored.
        weights: also say what each Gaussian contributes; costs a second pass on a GPU.
    """

    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    antialiased: bool = False
    near: float = 0.01
    sh_degree: int = 3
    weights: bool = True

    def __post_init__(self) -> None:
        """Check every field."""
        if not (math.isfinite(self.near) and self.near > 0):
            raise SpecError(f"near must be above 0, not {self.near}")
        if not all(math.isfinite(value) for value in self.background):
            raise SpecError(f"the background must be finite, not {self.background}")
        if self.sh_degree not in range(4):
            raise SpecError(f"sh_degree must be 0 to 3, not {self.sh_degree}")


@dataclass(frozen=True)
class Splats:
    """The attributes of a `Scene` as torch tensors, which may require gradients.

    Attributes:
        positions: ``[N, 3]``.
        log_scales: ``[N, 3]``.
        rotations: ``[N, 4]``, quaternion w, x, y, z of any length above 0.
        opacity_logits: ``[N]``.
        sh_dc: ``[N, 3]``.
        sh_rest: ``[N, M, 3]``.
    """

    positions: Tensor
    log_scales: Tensor
    rotations: Tensor
    opacity_logits: Tensor
    sh_dc: Tensor
    sh_rest: Tensor

    @classmethod
    def of(cls, scene: Scene, device: torch.device | str = "cpu") -> Splats:
        """Copies a scene to tensors on a device."""
        return cls(**{name: torch.tensor(a, device=device) for name, a in scene.arrays().items()})

    def tensors(self) -> tuple[Tensor, ...]:
        """All attributes, in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.positions)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return math.isqrt(self.sh_rest.shape[1] + 1) - 1


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A rendered picture with depth, alpha and the contributions of the Gaussians.

    Attributes:
        colour: float32 ``[H, W, 3]``, linear in the weights, not clamped to 1.
        alpha: float32 ``[H, W]``, how much of the background is hidden.
        depth: float32 ``[H, W]``, sum of weight x distance along the optical axis; divided by
            ``alpha`` it is the mean depth.
        weights: float32 ``[N]``, sum over pixels of transmittance x alpha of each Gaussian: what it
            contributes to the picture. Without gradient; empty if not asked for.
        radii: float32 ``[N]``, pixels from the centre to the farthest visible point of each splat;
            0 where it is not drawn. Without gradient.
        means2d: leaf whose ``grad`` ``[N, 2]`` is, after ``backward``, that of the projected
            centres in pixels; None where no gradient is needed.
    """

    colour: Tensor
    alpha: Tensor
    depth: Tensor
    weights: Tensor
    radii: Tensor
    means2d: Tensor | None
