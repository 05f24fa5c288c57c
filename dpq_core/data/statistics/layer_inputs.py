"""LayerInput: how the input of each kind of layer becomes the rows x of ``y = x W^T``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpq_core.runtime.conv import PQConv2d
from dpq_core.tensor.partition import Layout

_CHUNK = 1 << 24
"""Values of the rows that exist at a time while patches are cut out of images."""


class RoutedLinear(nn.Linear):
    """A Linear that gets only those tokens that a router chose, none at all in some calls."""


@dataclass(frozen=True, kw_only=True)
class LayerInput:
    """The kind of a layer, with everything that decides how its input is cut into rows.

    Two layers with equal values that get the same tensor see the same rows.

    Attributes:
        layout: layout of the weight.
        cols: length of a row; for an embedding the number of entries.
        kernel: (height, width) of a convolution's kernel, as are ``stride`` and ``dilation``.
        pad: padding of the image, innermost axis first (left, right, top, bottom).
        pad_mode: as in ``torch.nn.functional.pad``.
        groups: groups of a convolution; the channels of each group give separate rows, so that a
            moment is the average over the groups.
        conv_layout: order of the columns of a convolution, as in ``QuantSpec``.
        routed: whether another model may give the layer other rows of the same batch.
    """

    layout: Layout
    cols: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, ...] = ()
    pad_mode: str = "constant"
    groups: int = 1
    conv_layout: str = "spatial"
    routed: bool = False

    @classmethod
    def of(cls, module: nn.Module, conv_layout: str | None = None) -> LayerInput | None:
        """The layer input of a module; None for a kind of module that has no rows.

        Args:
            module: dense or quantized.
            conv_layout: of a dense convolution, ``spatial`` by default; a quantized one has its
                own.
        """
        if isinstance(module, nn.Linear):
            routed = isinstance(module, RoutedLinear)
            return cls(layout=Layout.LINEAR, cols=module.in_features, routed=routed)
        if isinstance(module, nn.Embedding):
            return cls(layout=Layout.EMBEDDING, cols=module.num_embeddings)
        if isinstance(module, PQConv2d):
            conv_layout = module.weight.partition.conv_layout
            return _convolution(module, module._reversed_padding_repeated_twice, conv_layout)
        if isinstance(module, nn.Conv2d):
            pad = module._reversed_padding_repeated_twice
            return _convolution(module, pad, conv_layout or "spatial")
        return None

    def rows(self, x: Tensor, limit: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The rows ``[n, cols]`` of an input, a chunk at a time; not for embeddings.

        Args:
            x: ``[..., cols]``, or images ``[N, Cin, H, W]`` or ``[Cin, H, W]``.
            limit: most positions of the images to look at; more than that are drawn from.
            generator: generator of the draw, on the CPU.
        """
        if self.layout is Layout.LINEAR:
            yield x.reshape(-1, self.cols)
            return
        images = x if x.ndim == 4 else x[None]
        mode = self.pad_mode
        padded = nn.functional.pad(images, self.pad, mode=mode).permute(0, 2, 3, 1).contiguous()
        high, wide = (
            (padded.shape[axis + 1] - self.dilation[axis] * (self.kernel[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        position = self._positions(len(padded) * high * wide, limit, generator).to(x.device)
        step = max(1, _CHUNK // (self.cols * self.groups))
        for some in torch.split(position, step):
            yield self._patches(padded, some // (high * wide), some % (high * wide), wide)

    def _positions(self, total: int, limit: int, generator: torch.Generator) -> Tensor:
        if total <= limit:
            return torch.arange(total)
        return torch.randperm(total, generator=generator)[:limit].sort().values

    def _patches(self, padded: Tensor, image: Tensor, place: Tensor, wide: int) -> Tensor:
        """Rows of the given places: padded ``[N, H, W, Cin]``, int64 ``[n]`` each -> ``[., cols]``.

        The same as ``torch.nn.functional.unfold``, but only where it is wanted.
        """
        tops, lefts = place // wide * self.stride[0], place % wide * self.stride[1]
        down, right = (
            torch.arange(size, device=place.device) * dilation
            for size, dilation in zip(self.kernel, self.dilation, strict=True)
        )
        y = (tops[:, None] + down)[:, :, None]  # [n, kh, 1]
        x = (lefts[:, None] + right)[:, None, :]  # [n, 1, kw]
        patches = padded[image[:, None, None], y, x]  # [n, kh, kw, Cin]
        split = torch.unflatten(patches, 3, (self.groups, -1))
        patches = split.movedim(3, 1)  # [n, groups, kh, kw, C]
        if self.conv_layout == "spatial":
            patches = patches.movedim(4, 2)
        return patches.reshape(-1, self.cols)


def _convolution(module: nn.Conv2d, pad: list[int], conv_layout: str) -> LayerInput:
    high, wide = module.kernel_size
    mode = module.padding_mode
    return LayerInput(
        layout=Layout.CONV,
        cols=module.in_channels // module.groups * high * wide,
        kernel=(high, wide),
        stride=(module.stride[0], module.stride[1]),
        dilation=(module.dilation[0], module.dilation[1]),
        pad=tuple(pad),
        pad_mode="constant" if mode == "zeros" else mode,
        groups=module.groups,
        conv_layout=conv_layout,
    )
