"""Products of activations and a quantized weight: by look-up tables, or decoded by chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpq_core.runtime.decoding import Decodable


def multiply(tokens: Tensor, weight: Decodable, bias: Tensor | None = None) -> Tensor:
    """The product ``tokens W^T + bias``, by the faster way (docs/algorithms.md#decode, #lut).

    Args:
        tokens: activations ``[tokens, C]``.
        weight: quantized W, ``[R, C]``.
        bias: ``[R]``.

    Returns:
        ``[tokens, R]`` in the dtype of ``tokens``.
    """
    frame = weight.frame()
    inputs = tokens if frame.keeps_inputs else frame.activations_in(tokens)
    if uses_table(inputs, weight):
        return _plus_bias(frame.activations_out(tabulated(inputs, weight)), bias)
    product, scale = decoded(inputs, weight)
    if frame.signs_out is None:
        return _plus_bias(product, bias, scale)
    scaled = product if scale is None else product * scale
    return _plus_bias(frame.activations_out(scaled), bias)


def multiply_back(gradient: Tensor, weight: Decodable) -> Tensor:
    """Gradients of the inputs ``[tokens, C]`` of ``multiply`` from those of its outputs.

    Args:
        gradient: ``[tokens, R]``.
        weight: quantized W, ``[R, C]``, which is decoded again a chunk at a time.
    """
    result = gradient.new_zeros(len(gradient), weight.partition.cols)
    for first, rows in weight.row_chunks(gradient.dtype):
        result.addmm_(gradient[:, first : first + len(rows)], rows)
    return result


def uses_table(tokens: Tensor, weight: Decodable) -> bool:
    """Whether the product by look-up tables applies and is faster."""
    p = weight.partition
    if (
        tokens.device.type != "cpu"
        or p.orientation != "input"
        or (p.code_bits not in (8, 16) and not p.row_bits)
        or p.rows * 8 < p.K  # the table would cost more than the product
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        return False
    from dpq_core.kernels.cpu import lut, trellis_decode  # numba loads on first use

    if p.row_bits:
        return 0 < len(tokens) <= trellis_decode.MAX_TOKENS
    # Beyond, decoding is faster (benchmarks/suites/runtime.py).
    return 0 < len(tokens) <= (lut.usable()[0].tokens if p.code_bits == 8 else p.d)


def tabulated(tokens: Tensor, weight: Decodable) -> Tensor:
    """Product of inputs of the core ``[tokens, C]`` and a core that is never decoded.

    Returns:
        ``[tokens, R]`` in the dtype of ``tokens``, multiplied by the row scales.
    """
    from dpq_core.kernels.cpu import lut, trellis_decode  # numba loads on first use

    p, scale = weight.partition, weight.parts().get("row_scale")
    if p.row_bits:
        outliers = weight.outlier_places(), weight.parts()["outlier_values"].detach()
        parts = weight.codes, weight.quads(), weight.books(), outliers
        result = trellis_decode.product(tokens, *parts, p)
        return (result if scale is None else result * scale.detach().float()).to(tokens.dtype)
    codes = weight.codes if p.code_bits == 8 else weight.codes.view(torch.uint16)
    precise = tokens.dtype not in (torch.bfloat16, torch.float16)
    books = weight.books().detach()
    result = lut.multiply(tokens.float(), books, codes, p, precise=precise)
    if scale is not None:
        result = result * scale.detach().float()
    return result.to(tokens.dtype)


def decoded(tokens: Tensor, weight: Decodable) -> tuple[Tensor, Tensor | None]:
    """Product of inputs of the core and the decoded core, ``[tokens, R]``.

    The row scales that it still lacks, if any, come second.
    """
    # Scaling outputs is quicker than scaling weights, but may overflow in float16.
    scale = weight.parts().get("row_scale") if tokens.dtype != torch.float16 else None
    chunks = [
        nn.functional.linear(tokens, rows)
        for _, rows in weight.core_chunks(tokens.dtype, scaled=scale is None, tiled=True)
    ]
    product = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=-1)
    return product, None if scale is None else scale.to(tokens.dtype)


def _plus_bias(product: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """The outputs ``product * scale + bias``, in one pass where there are both."""
    bias = None if bias is None else bias.to(product.dtype)
    if scale is not None and bias is not None:
        target = None if torch.is_grad_enabled() else product
        return torch.addcmul(bias, product, scale, out=target)
    if scale is not None:
        return product * scale
    return product if bias is None else product + bias
