"""PQLinear: a linear layer with a quantized weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.runtime.layer import FrozenProduct, PQLayer
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
        """Multiply activations ``[..., C]`` to ``[..., R]`` in the dtype of ``x``."""
        tokens = x.reshape(-1, self.in_features)
        out: Tensor
        if self.is_frozen_for(tokens):
            out = FrozenProduct.run(tokens, self.bias, self)
        else:
            out = self.weight(self.product, tokens)
        return out.reshape(*x.shape[:-1], self.out_features)

    def input_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient ``[tokens, C]`` of the inputs from that of the outputs ``[tokens, R]``."""
        result = gradient.new_zeros(shape)
        for first, rows in self.weight.row_chunks(gradient.dtype):
            result.addmm_(gradient[:, first : first + len(rows)], rows)
        return result

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient ``[R]`` of the bias from that of the outputs ``[tokens, R]``."""
        return gradient.sum(0)

    def product(self, tokens: Tensor) -> Tensor:
        """Outputs ``[tokens, R]`` of inputs ``[tokens, C]``, by the faster way."""
        frame = self.weight.frame()
        inputs = tokens if frame.keeps_inputs else frame.activations_in(tokens)
        if self._uses_table(inputs):
            return self._plus_bias(frame.activations_out(self._tabulated(inputs)))
        product, scale = self._decoded(inputs)
        if frame.signs_out is None:
            return self._plus_bias(product, scale)
        scaled = product if scale is None else product * scale
        return self._plus_bias(frame.activations_out(scaled))

    def _uses_table(self, tokens: Tensor) -> bool:
        """Whether the product by look-up tables applies and is faster."""
        p = self.weight.partition
        return (
            tokens.device.type == "cpu"
            and 0 < len(tokens) <= p.d  # beyond, decoding is faster (benchmarks/suites/runtime.py)
            and p.orientation == "input"
            and p.code_bits in (8, 16)
            and p.stages == 1
            and p.rows * 8 >= p.K  # otherwise the table costs more than the product
            and not torch.is_grad_enabled()
        )

    def _tabulated(self, tokens: Tensor) -> Tensor:
        """The product with the core by look-up tables, times the row scales."""
        return tabulated_product(tokens, self.weight)

    def _decoded(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The product with the decoded core, and the row scales that it still lacks, if any."""
        # Scaling outputs is quicker than scaling weights, but may overflow in float16.
        scale = self.weight.parts().get("row_scale") if tokens.dtype != torch.float16 else None
        chunks = [
            nn.functional.linear(tokens, rows)
            for _, rows in self.weight.core_chunks(tokens.dtype, scaled=scale is None)
        ]
        product = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=-1)
        return product, None if scale is None else scale.to(tokens.dtype)

    def _plus_bias(self, product: Tensor, scale: Tensor | None = None) -> Tensor:
        """The outputs ``product * scale + bias``, in one pass where there are both."""
        bias = None if self.bias is None else self.bias.to(product.dtype)
        if scale is not None and bias is not None:
            target = None if torch.is_grad_enabled() else product
            return torch.addcmul(bias, product, scale, out=target)
        if scale is not None:
            return product * scale
        return product if bias is None else product + bias

    def extra_repr(self) -> str:
        """The sizes that ``print(model)`` shows."""
        p = self.weight.partition
        return f"in={p.cols}, out={p.rows}, " + self.weight.sizes()


def tabulated_product(tokens: Tensor, weight: PQWeight) -> Tensor:
    """Product of activations ``[tokens, C]`` and a quantized weight that is never decoded.

    Returns:
        ``[tokens, R]`` in the dtype of ``tokens``.
    """
    from dpq_core.kernels.cpu.lut import sum_by_code  # numba loads on first use

    p = weight.partition
    padded = tokens.new_zeros(
        (len(tokens), p.codebooks * p.groups_per_codebook, p.d), dtype=torch.float32
    )
    padded.view(len(tokens), -1)[:, : p.cols] = tokens
    codebooks = weight.books().detach()  # [B, K, d]
    by_codebook = padded.view(len(tokens), p.codebooks, p.groups_per_codebook, p.d)
    table = torch.einsum("tcgd,ckd->tcgk", by_codebook, codebooks)
    table = table.reshape(len(tokens), -1, p.K)[:, : p.groups].contiguous()
    codes = weight.codes if p.code_bits == 8 else weight.codes.view(torch.uint16)
    result = sum_by_code(table, codes)
    scale = weight.parts().get("row_scale")
    if scale is not None:
        result = result * scale.detach().float()
    return result.to(tokens.dtype)
