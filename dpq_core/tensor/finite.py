"""Tensors that no model can have meant."""

from __future__ import annotations

import math

from torch import Tensor

from dpq_core.errors import SpecError


def check_finite(values: Tensor, name: str) -> None:
    """Refuse NaN in a tensor that is kept, and infinities in a weight or bias.

    Infinities elsewhere can be meant: attention masks are made of them. Quantized tensors may hold
    neither; ``quantize`` sees to these.

    Raises:
        SpecError: the tensor is damaged.
    """
    if not values.is_floating_point() or not values.numel():
        return
    if values.dtype.itemsize == 1:
        values = values.half()  # float8 has no minimum in torch
    low, high = (value.float().item() for value in values.aminmax())  # NaN if there is any
    parameter = name.rpartition(".")[2] in ("weight", "bias")
    if math.isnan(low) or (parameter and math.isinf(max(-low, high))):
        raise SpecError(f"tensor {name!r} holds NaN or infinite values; repair the checkpoint")
