"""The loss of 3D Gaussian Splatting: 0.8 L1 + 0.2 (1 - SSIM), with a compiled SSIM.

torch's convolutions take ten times as long as rendering the picture.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = np.float32(0.01**2), np.float32(0.03**2)
SSIM_SHARE = 0.2
_offsets = np.arange(WINDOW) - WINDOW // 2
_weights = np.exp(-(_offsets**2) / (2 * SIGMA**2))
_weights = (_weights / _weights.sum()).astype(np.float32)


@numba.njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _blur(planes: Any, weights: Any, out: Any) -> None:
    """Planes [n, H, W] under a separable window, zero outside."""
    n, height, width = planes.shape
    half = weights.shape[0] // 2
    row = np.zeros(width + 2 * half, np.float32)
    for i in range(n):
        for y in range(height):
            row[:] = 0
            for k in range(max(0, half - y), min(weights.shape[0], height + half - y)):
                weight = weights[k]
                line = planes[i, y + k - half]
                for x in range(width):
                    row[x + half] += weight * line[x]
            line = out[i, y]
            line[:] = 0
            for k in range(weights.shape[0]):
                weight = weights[k]
                for x in range(width):
                    line[x] += weight * row[x + k]


@numba.njit(cache=True)
def _products(x: Any, y: Any, planes: Any) -> None:
    """x, x^2 and x y of three channels: planes [9, H, W]."""
    for c in range(3):
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                value = x[c, row, column]
                planes[c, row, column] = value
                planes[c + 3, row, column] = value * value
                planes[c + 6, row, column] = value * y[c, row, column]


@numba.njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def _terms(blurred: Any, mean_target: Any, variance_target: Any, maps: Any) -> float:
    """Sum of the SSIM, and in ``maps`` its derivatives by the blurred x, x^2 and x y."""
    two, total = np.float32(2), 0.0
    for c in range(3):
        for row in range(maps.shape[1]):
            line = np.float32(0)
            for column in range(maps.shape[2]):
                mean, other = blurred[c, row, column], mean_target[c, row, column]
                first = two * mean * other + C1
                second = two * (blurred[c + 6, row, column] - mean * other) + C2
                third = mean * mean + other * other + C1
                variances = blurred[c + 3, row, column] - mean * mean
                fourth = variances + variance_target[c, row, column] + C2
                scale = np.float32(1) / (third * fourth)
                ssim = first * second * scale
                by_mean = two * other * (second - first) * scale
                by_mean -= two * mean * ssim * (fourth - third) * scale
                maps[c, row, column] = by_mean
                maps[c + 3, row, column] = -ssim * third * scale
                maps[c + 6, row, column] = two * first * scale
                line += ssim
            total += line
    return total


def blurred(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Planes [n, H, W] under a Gaussian window, zero outside."""
    out = np.empty_like(planes)
    _blur(planes, _weights, out)
    return out


class Target:
    """A photograph [H, W, 3] and the moments of its windows."""

    def __init__(self, photo: Tensor) -> None:
        self.photo = photo
        self.planes = np.ascontiguousarray(photo.permute(2, 0, 1).numpy())
        self.mean = blurred(self.planes)
        self.variance = blurred(self.planes**2) - self.mean**2

    def ssim(self, picture: Tensor) -> Tensor:
        """Mean structural similarity of a picture [H, W, 3] with the photograph."""
        return _SSIM.apply(picture, self)

    def loss(self, picture: Tensor) -> Tensor:
        difference = (picture - self.photo).abs().mean()
        return (1 - SSIM_SHARE) * difference + SSIM_SHARE * (1 - self.ssim(picture))

    def psnr(self, picture: Tensor) -> float:
        """Decibels, of the picture as it would be shown: clamped to [0, 1]."""
        error = (picture.clamp(0, 1) - self.photo).square().mean()
        return float(-10 * torch.log10(error))


class _SSIM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, picture: Tensor, target: Target) -> Tensor:
        x = picture.detach().permute(2, 0, 1).contiguous().numpy()
        planes = np.empty((9, *x.shape[1:]), np.float32)
        _products(x, target.planes, planes)
        maps = np.empty_like(planes)
        total = _terms(blurred(planes), target.mean, target.variance, maps)
        back = blurred(maps)
        grad = back[:3] + 2 * x * back[3:6] + target.planes * back[6:]
        ctx.save_for_backward(torch.from_numpy(grad / np.float32(x.size)).permute(1, 2, 0))
        return torch.tensor(total / x.size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.saved_tensors[0], None
