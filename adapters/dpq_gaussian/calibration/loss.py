"""The loss of 3D Gaussian Splatting, (1 - s) L1 + s (1 - SSIM) (Kerbl et al. 2023, equation 7).

On the CPU with a compiled SSIM: torch's convolutions take ten times as long as drawing the picture.
Elsewhere by those convolutions, which are the oracle of the compiled path as well.
"""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = np.float32(0.01**2), np.float32(0.03**2)

SSIM_SHARE = 0.2
"""Of the loss, in Kerbl et al. 2023."""

FloatArray = npt.NDArray[np.float32]


def _window() -> FloatArray:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window: FloatArray = (weights / weights.sum()).astype(np.float32)
    return window


_WEIGHTS = _window()

_blur_jit = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})


@_blur_jit
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


@numba.njit(cache=True, nogil=True)
def _products(x: Any, y: Any, planes: Any) -> None:
    """x, x^2 and x y of three channels: planes [9, H, W]."""
    for c in range(3):
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                value = x[c, row, column]
                planes[c, row, column] = value
                planes[c + 3, row, column] = value * value
                planes[c + 6, row, column] = value * y[c, row, column]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def _terms(blurred: Any, mean_target: Any, variance_target: Any, maps: Any) -> Any:
    """Sum of the SSIM, and in ``maps`` its derivatives by the blurred x, x^2 and x y."""
    two, total = np.float32(2), 0.0
    for c in range(3):
        for row in range(maps.shape[1]):
            line: Any = np.float32(0)
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


def _blurred(planes: FloatArray) -> FloatArray:
    """Planes [n, H, W] under a Gaussian window, zero outside."""
    out = np.empty_like(planes)
    _blur(planes, _WEIGHTS, out)
    return out


class TargetPicture:
    """The picture that a view should become, with its precomputed SSIM moments.

    Attributes:
        photo: float32 ``[H, W, 3]`` in [0, 1].
    """

    def __init__(self, photo: Tensor) -> None:
        """Prepare a photograph, or a picture of the original."""
        self.photo = photo
        if not photo.is_cuda:
            self.planes = np.ascontiguousarray(photo.permute(2, 0, 1).numpy())
            self.mean = _blurred(self.planes)
            self.variance = _blurred(self.planes**2) - self.mean**2

    @property
    def nbytes(self) -> int:
        """Memory of the picture and its moments, in bytes."""
        return 16 * self.photo.numel()

    def ssim(self, picture: Tensor) -> Tensor:
        """Mean structural similarity of a picture ``[H, W, 3]``, zero outside of both."""
        if self.photo.is_cuda:
            return ssim_reference(picture, self.photo)
        return cast(Tensor, _SSIM.apply(picture, self))  # type: ignore[no-untyped-call]

    def loss(self, picture: Tensor, share: float = SSIM_SHARE) -> Tensor:
        """(1 - share) L1 + share (1 - SSIM) of a picture ``[H, W, 3]``."""
        difference = (picture - self.photo).abs().mean()
        return (1 - share) * difference + share * (1 - self.ssim(picture))

    def psnr(self, picture: Tensor) -> float:
        """PSNR in dB of a picture ``[H, W, 3]``, clamped to [0, 1], against the target."""
        error = (picture.clamp(0, 1) - self.photo).square().mean()
        return float(-10 * torch.log10(error))


def ssim_reference(picture: Tensor, photo: Tensor) -> Tensor:
    """``TargetPicture.ssim`` by torch operations: the oracle, and the path of a GPU."""
    weights = torch.from_numpy(_WEIGHTS).to(picture)
    kernel = torch.outer(weights, weights).expand(3, 1, -1, -1)

    def blurred(image: Tensor) -> Tensor:
        planes = image.permute(2, 0, 1)[None]
        return torch.nn.functional.conv2d(planes, kernel, padding=WINDOW // 2, groups=3)[0]

    mean, other = blurred(picture), blurred(photo)
    first = 2 * mean * other + float(C1)
    second = 2 * (blurred(picture * photo) - mean * other) + float(C2)
    third = mean**2 + other**2 + float(C1)
    fourth = blurred(picture**2) - mean**2 + blurred(photo**2) - other**2 + float(C2)
    return (first * second / (third * fourth)).mean()


class _SSIM(torch.autograd.Function):
    """The mean of the SSIM of a picture with a target; its gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, picture: Tensor, target: TargetPicture) -> Tensor:
        x = picture.detach().permute(2, 0, 1).contiguous().numpy()
        planes = np.empty((9, *x.shape[1:]), np.float32)
        _products(x, target.planes, planes)
        maps = np.empty_like(planes)
        total = _terms(_blurred(planes), target.mean, target.variance, maps)
        back = _blurred(maps)
        grad = back[:3] + 2 * x * back[3:6] + target.planes * back[6:]
        ctx.save_for_backward(torch.from_numpy(grad / np.float32(x.size)).permute(1, 2, 0))
        return torch.tensor(total / x.size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.saved_tensors[0], None
