"""PQLinear: a linear layer with a quantized weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.runtime import operators
from dpq_core.runtime.layer import FrozenProduct, PQLayer
from dpq_core.runtime.product import multiply, multiply_back
from dpq_core.runtime.weight import PQWeight


class PQLinear(PQLayer, nn.Linear):
    """A ``Linear``, ``y = x W^T + b``, with quantized W.

    For many tokens the rows of W are decoded a chunk at a time and multiplied (decode-then-GEMM);
    for few tokens on a CPU, without gradients, inner products with all codewords are tabulated
    once per token and summed by code, and W is never decoded (docs/algorithms.md#lut).
    """

    dense_kind = nn.Linear
    weight: PQWeight  # type: ignore[assignment]  # a Linear's is a parameter

    def __init__(self, weight: PQWeight, bias: Tensor | None = None) -> None:
        """Take a quantized weight ``[R, C]`` (out, in) and an optional bias ``[R]``."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = weight.partition.cols, weight.partition.rows
        self.use(weight)
        self.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``[..., C]`` to ``[..., R]``, in the dtype of ``x`` or of autocast."""
        if torch.is_autocast_enabled(x.device.type):
            return operators.as_under_autocast(self.forward, x)
        tokens = x.reshape(-1, self.in_features)
        out: Tensor
        if self.is_frozen_for(tokens) and not torch.compiler.is_compiling():
            out = FrozenProduct.run(tokens, self.bias, self)
        else:
            out = self.weight(self.product, tokens)
        return out.reshape(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """Outputs ``[tokens, R]`` of inputs ``[tokens, C]``, by the faster way."""
        if not self.weight.needs_operator():
            return multiply(x, self.weight, self.bias)
        out: Tensor = operators.linear(x, *self.weight.operands())
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def input_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient ``[tokens, C]`` of the inputs from that of the outputs ``[tokens, R]``."""
        return multiply_back(gradient, self.weight)

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient ``[R]`` of the bias from that of the outputs ``[tokens, R]``."""
        return gradient.sum(0)

    def extra_repr(self) -> str:
        """The sizes that ``print(model)`` shows."""
        p = self.weight.partition
        return f"in={p.cols}, out={p.rows}, " + self.weight.sizes()
