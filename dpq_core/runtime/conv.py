"""PQConv2d: a 2D convolution with a quantized kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dpq_core.runtime.weight import PQWeight


class PQConv2d(nn.Module):
    """A ``Conv2d`` with a quantized kernel, which is decoded a chunk of output channels at a time.

    Kernels are small and their activations many, so decoding always precedes the convolution
    (docs/algorithms.md#convolution). The kernel is decoded as a whole where convolutions are
    grouped (a chunk could cut through a group) and where it is stored in another basis.
    """

    def __init__(self, weight: PQWeight, conv: nn.Conv2d) -> None:
        """Take the geometry and the bias of ``conv``, and ``weight`` in place of its kernel."""
        super().__init__()
        self.weight = weight
        self.bias = conv.bias
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.groups, self.padding_mode = conv.groups, conv.padding_mode
        self.padding = conv.padding
        # What Conv2d itself pads with where padding is not zeros, innermost axis first.
        self._pad = conv._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``[N, Cin, H, W]`` to ``[N, Cout, H', W']`` in the dtype of ``x``."""
        out: Tensor = self.weight(self._convolve, x)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _convolve(self, x: Tensor) -> Tensor:
        """The convolution without the bias."""
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            x, padding = nn.functional.pad(x, self._pad, mode=self.padding_mode), 0
        parts = [
            nn.functional.conv2d(x, kernel, None, self.stride, padding, self.dilation, self.groups)
            for kernel in self._kernels(x.dtype)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _kernels(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the kernel by chunks of outputs, each ``[chunk, Cin / groups, kh, kw]``."""
        if self.groups > 1 or not self.weight.frame().keeps_inputs:
            yield self.weight.decode(dtype)
            return
        for _, rows in self.weight.core_chunks(dtype):
            yield self.weight.partition.from_matrix(rows)

    def extra_repr(self) -> str:
        """The sizes that ``print(model)`` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            + self.weight.sizes()
        )
