"""Random Gaussians and cameras for the tests of the rasteriser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpq_gaussian.cameras import Camera
from dpq_gaussian.rendering import Splats
from dpq_gaussian.scene import SH_REST, Scene

NAMES = ("positions", "log_scales", "rotations", "opacity_logits", "sh_dc", "sh_rest")


def tensors(
    seed: int, count: int, degree: int, *, scales: tuple[float, float] = (-4.0, -0.5)
) -> dict[str, Tensor]:
    """Attributes around the origin, float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    low, high = scales
    return {
        "positions": normal(count, 3),
        "log_scales": low + (high - low) * torch.rand(count, 3, generator=generator),
        "rotations": 3 * normal(count, 4),
        "opacity_logits": 2 * normal(count),
        "sh_dc": normal(count, 3),
        "sh_rest": 0.3 * normal(count, SH_REST[degree], 3),
    }


def scene(seed: int, count: int, degree: int, **more: Any) -> Scene:
    return Scene(**{name: t.numpy() for name, t in tensors(seed, count, degree, **more).items()})


def splats(attributes: dict[str, Tensor], dtype: torch.dtype, *, grad: bool = False) -> Splats:
    return Splats(**{n: t.to(dtype).clone().requires_grad_(grad) for n, t in attributes.items()})


def camera(seed: int, width: int = 50, height: int = 37, **fields: Any) -> Camera:
    """A random camera near the origin: some Gaussians are behind it, some off the picture."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    chosen: dict[str, Any] = {
        "width": width,
        "height": height,
        "fx": rng.uniform(20, 80),
        "fy": rng.uniform(20, 80),
        "cx": width / 2 + 3 * rng.normal(),
        "cy": height / 2 + 3 * rng.normal(),
        "rotation": rotation,
        "translation": np.array([0, 0, rng.uniform(0, 4)]) + rng.normal(size=3) / 2,
    }
    return Camera(**{**chosen, **fields})


def ahead(width: int = 48, height: int = 32, **fields: Any) -> Camera:
    """A camera at the origin that looks along z."""
    chosen: dict[str, Any] = {
        "width": width,
        "height": height,
        "fx": 40.0,
        "fy": 40.0,
        "cx": width / 2,
        "cy": height / 2,
        "rotation": np.eye(3),
        "translation": np.zeros(3),
    }
    return Camera(**{**chosen, **fields})


def one(**changes: Any) -> dict[str, Tensor]:
    """A single round grey Gaussian two units ahead; ``changes`` are attributes of it."""
    plain: dict[str, Any] = {
        "positions": [0.0, 0.0, 2.0],
        "log_scales": [-2.0, -2.0, -2.0],
        "rotations": [1.0, 0.0, 0.0, 0.0],
        "opacity_logits": 0.0,
        "sh_dc": [0.0, 0.0, 0.0],
        "sh_rest": torch.zeros(0, 3),
    }
    return {n: torch.as_tensor(v).float()[None] for n, v in {**plain, **changes}.items()}
