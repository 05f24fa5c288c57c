"""The Inception-v3 of FID: the 2015 TensorFlow graph, in torch.

The network of Szegedy et al. (2015), arXiv:1512.00567, with the peculiarities of the graph that
the FID and ADM evaluators use: 1008 classes, average pools that do not count their padding, a
max pool in the last block, bilinear resizing without half-pixel centres. Parameters have the names
of the converted weights ``pt_inception-2015-12-05-6726825d.pth``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpq_diffusion.evaluation.extractor import Features

INPUT_SIZE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7
"""sFID takes the first 7 of the 192 channels: 17 x 17 x 7 = 2023 dimensions, close to 2048."""


class Conv(NamedTuple):
    """A convolution of a block: name, output channels, kernel (height, width)."""

    name: str
    width: int
    kernel: tuple[int, int]


class Block(NamedTuple):
    """An inception block: branches side by side, their outputs concatenated.

    Attributes:
        branches: each a chain of steps; the convolutions of one step run in parallel.
        pool: kind of the pooling branch.
        pool_width: output channels of its 1x1 convolution; 0: pooled input without one.
        stride: stride of each chain's last step and of the pool; 2 halves the grid, unpadded.
    """

    branches: tuple[tuple[tuple[Conv, ...], ...], ...]
    pool: Literal["average", "max"]
    pool_width: int
    stride: int = 1


def _chain(*convs: tuple[str, int, tuple[int, int]]) -> tuple[tuple[Conv, ...], ...]:
    return tuple((Conv(*conv),) for conv in convs)


def _block_35(pool_width: int) -> Block:
    return Block(
        (
            _chain(("branch1x1", 64, (1, 1))),
            _chain(("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            _chain(
                ("branch3x3dbl_1", 64, (1, 1)),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ),
        ),
        "average",
        pool_width,
    )


def _block_17(inner: int) -> Block:
    return Block(
        (
            _chain(("branch1x1", 192, (1, 1))),
            _chain(
                ("branch7x7_1", inner, (1, 1)),
                ("branch7x7_2", inner, (1, 7)),
                ("branch7x7_3", 192, (7, 1)),
            ),
            _chain(
                ("branch7x7dbl_1", inner, (1, 1)),
                ("branch7x7dbl_2", inner, (7, 1)),
                ("branch7x7dbl_3", inner, (1, 7)),
                ("branch7x7dbl_4", inner, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ),
        ),
        "average",
        192,
    )


def _block_8(pool: Literal["average", "max"]) -> Block:
    def fork(prefix: str) -> tuple[Conv, ...]:
        return Conv(f"{prefix}a", 384, (1, 3)), Conv(f"{prefix}b", 384, (3, 1))

    return Block(
        (
            _chain(("branch1x1", 320, (1, 1))),
            (*_chain(("branch3x3_1", 384, (1, 1))), fork("branch3x3_2")),
            (
                *_chain(("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))),
                fork("branch3x3dbl_3"),
            ),
        ),
        pool,
        192,
    )


_TO_17 = Block(
    (
        _chain(("branch3x3", 384, (3, 3))),
        _chain(
            ("branch3x3dbl_1", 64, (1, 1)),
            ("branch3x3dbl_2", 96, (3, 3)),
            ("branch3x3dbl_3", 96, (3, 3)),
        ),
    ),
    "max",
    0,
    2,
)

_TO_8 = Block(
    (
        _chain(("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))),
        _chain(
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, (3, 3)),
        ),
    ),
    "max",
    0,
    2,
)

_BLOCKS = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": _TO_17,
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": _TO_8,
    "Mixed_7b": _block_8("average"),
    "Mixed_7c": _block_8("max"),
}

_SPATIAL_BLOCK = "Mixed_6d"


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation and ReLU."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padded: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, H, W]`` -> ``[N, width, H', W']``."""
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.ModuleDict):
    """One inception block; its convolutions are its children by name."""

    def __init__(self, channels: int, block: Block) -> None:
        super().__init__()
        self._block = block
        self.width = channels if block.pool_width == 0 else block.pool_width
        for steps in block.branches:
            fed = channels
            for step in steps:
                halves = block.stride == 2 and step is steps[-1]
                for conv in step:
                    self[conv.name] = ConvNorm(
                        fed, conv.width, conv.kernel, stride=1 + halves, padded=not halves
                    )
                fed = sum(conv.width for conv in step)
            self.width += fed
        if block.pool_width:
            self["branch_pool"] = ConvNorm(channels, block.pool_width, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, H, W]`` -> ``[N, width, H', W']``, the branches in their order."""
        outputs = []
        for steps in self._block.branches:
            y = x
            for step in steps:
                y = torch.cat([self[conv.name](y) for conv in step], 1)
            outputs.append(y)
        outputs.append(self._pooled(x))
        return torch.cat(outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        padding = 1 if self._block.stride == 1 else 0
        if self._block.pool == "max":
            pooled = functional.max_pool2d(x, 3, self._block.stride, padding)
        else:  # TensorFlow averages over the pixels that exist
            pooled = functional.avg_pool2d(x, 3, 1, padding, count_include_pad=False)
        return self["branch_pool"](pooled) if self._block.pool_width else pooled


class InceptionV3(nn.ModuleDict):
    """The network, from uint8 images to the three features of the ADM evaluator."""

    def __init__(self) -> None:
        super().__init__()
        self["Conv2d_1a_3x3"] = ConvNorm(3, 32, (3, 3), stride=2, padded=False)
        self["Conv2d_2a_3x3"] = ConvNorm(32, 32, (3, 3), padded=False)
        self["Conv2d_2b_3x3"] = ConvNorm(32, 64, (3, 3))
        self["Conv2d_3b_1x1"] = ConvNorm(64, 80, (1, 1))
        self["Conv2d_4a_3x3"] = ConvNorm(80, 192, (3, 3), padded=False)
        channels = 192
        for name, block in _BLOCKS.items():
            mixed = Mixed(channels, block)
            self[name] = mixed
            channels = mixed.width
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Features:
        """Features of uint8 images ``[N, H, W, 3]``.

        Returns:
            ``pool`` ``[N, 2048]`` (pool_3), ``spatial`` ``[N, 2023]`` (branch1x1 of Mixed_6d,
            first 7 channels, channels last) and ``logits`` ``[N, 1008]`` without the bias.
        """
        x = resize(images.permute(0, 3, 1, 2).float())
        x = (x - 128) / 128
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            x = self[name](x)
        x = functional.max_pool2d(x, 3, 2)
        for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            x = self[name](x)
        x = functional.max_pool2d(x, 3, 2)
        spatial = x
        for name in _BLOCKS:
            x = self[name](x)
            if name == _SPATIAL_BLOCK:  # branch1x1 comes first in the block's output
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        pool = x.mean((2, 3))
        logits = functional.linear(pool, self.fc.weight)
        return {"pool": pool, "spatial": spatial, "logits": logits}


def resize(images: Tensor, size: int = INPUT_SIZE) -> Tensor:
    """Resize images bilinearly as TensorFlow 1 does: pixel ``i`` is read at ``i * input / output``.

    No half-pixel centres, no antialiasing: other resizers change FID by whole points.

    Args:
        images: floating point ``[N, C, H, W]``.
        size: output height and width.

    Returns:
        ``[N, C, size, size]``.
    """
    height, width = images.shape[2:]
    lower, upper, weight = _taps(width, size, images)
    left = images[..., lower]
    rows = left + (images[..., upper] - left) * weight
    lower, upper, weight = _taps(height, size, images)
    top = rows[:, :, lower]
    return top + (rows[:, :, upper] - top) * weight[:, None]


def _taps(size_in: int, size_out: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lower and upper source index of each pixel, and the upper's weight: ``[size_out]``."""
    scale = torch.tensor(size_in / size_out, dtype=torch.float32, device=like.device)
    position = torch.arange(size_out, dtype=torch.float32, device=like.device) * scale
    lower = position.floor().long().clamp_max(size_in - 1)
    upper = (lower + 1).clamp_max(size_in - 1)
    return lower, upper, (position - lower).to(like.dtype)
