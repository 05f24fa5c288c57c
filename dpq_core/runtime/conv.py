"""PQConv2d: a 2D convolution with a quantized kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from dpq_core.runtime import operators
from dpq_core.runtime.layer import FrozenProduct, PQLayer
from dpq_core.runtime.weight import PQWeight


class PQConv2d(PQLayer, nn.Conv2d):
    """A ``Conv2d`` with a quantized kernel, which is decoded a chunk of output channels at a time.

    Kernels are small and their activations many, so decoding always precedes the convolution
    (docs/algorithms.md#convolution). The kernel is decoded as a whole where convolutions are
    grouped (a chunk could cut through a group) and where it is stored in another basis.
    """

    dense_kind = nn.Conv2d
    weight: PQWeight  # type: ignore[assignment]  # a Conv2d's is a parameter

    def __init__(self, weight: PQWeight, conv: nn.Conv2d) -> None:
        """Take the geometry and the bias of ``conv``, and ``weight`` in place of its kernel."""
        nn.Module.__init__(self)
        self.use(weight)
        self.bias = conv.bias
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.groups, self.padding_mode = conv.groups, conv.padding_mode
        self.padding, self.output_padding = conv.padding, conv.output_padding
        self.transposed = False
        # What Conv2d itself pads with where padding is not zeros, innermost axis first.
        self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``[N, Cin, H, W]`` to ``[N, Cout, H', W']``.

        The result has the dtype of ``x``, or that of autocast.
        """
        if torch.is_autocast_enabled(x.device.type):
            return operators.as_under_autocast(self.forward, x)
        if self.padding_mode != "zeros":
            x = nn.functional.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        if self.is_frozen_for(x) and not torch.compiler.is_compiling():
            return FrozenProduct.run(x, self.bias, self)
        out: Tensor = self.weight(self.product, x)
        return out

    def product(self, x: Tensor) -> Tensor:
        """The convolution of images that are padded, unless with zeros, and the bias."""
        padding = self.padding if self.padding_mode == "zeros" else 0
        parts = [
            nn.functional.conv2d(x, kernel, None, self.stride, padding, self.dilation, self.groups)
            for kernel in self._kernels(x.dtype)
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def input_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient of padded images ``[N, Cin, H, W]`` from that of the outputs."""
        kernel = self.weight.decode(gradient.dtype)
        padding = self._reversed_padding_repeated_twice if self.padding_mode == "zeros" else [0] * 4
        left, right, top, bottom = padding
        padded = torch.Size((*shape[:2], shape[2] + top + bottom, shape[3] + left + right))
        result = conv2d_input(  # type: ignore[no-untyped-call]
            padded, kernel, gradient, self.stride, 0, self.dilation, self.groups
        )
        return nn.functional.pad(result, [-side for side in padding])

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient ``[Cout]`` of the bias from that of the outputs ``[N, Cout, H', W']``."""
        return gradient.sum((0, 2, 3))

    def _kernels(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the kernel by chunks of outputs, each ``[chunk, Cin / groups, kh, kw]``."""
        if self.weight.needs_operator():
            yield operators.decode(*self.weight.operands(), dtype)
            return
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
