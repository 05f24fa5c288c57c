"""PQLayer: what all quantized layers share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpq_core.runtime.weight import PQWeight


class PQLayer(nn.Module):
    """A layer with a quantized weight, which is also a layer of the kind that it replaces.

    Attributes:
        dense_kind: class of the layer that it replaces.
        weight: the quantized weight.
    """

    dense_kind: ClassVar[type[nn.Module]]
    weight: PQWeight

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """An empty layer; a dense one for the arguments of ``dense_kind``.

        Libraries make a new layer of the type of a given one: LoRA of a convolution does.
        """
        first = next(iter(arguments), options.get("weight"))
        if (arguments or options) and not isinstance(first, PQWeight):
            return cls.dense_kind(*arguments, **options)
        return super().__new__(cls)

    def use(self, weight: PQWeight) -> None:
        """Run on ``weight`` from now on."""
        self.weight = weight
        weight.serve(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.weight.serve(self)

    def become_dense(self, weight: nn.Parameter) -> None:
        """Become a layer of ``dense_kind`` with the given weight, in place."""
        self._modules.pop("weight", None)
        self.__dict__.pop("weight", None)
        self.__class__ = self.dense_kind  # type: ignore[assignment]  # what this is a subclass of
        self.weight = weight  # type: ignore[assignment]  # an ordinary layer now

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Take the state of a quantized layer, or become dense with that of a dense one."""
        if isinstance(dense := state_dict.get(f"{prefix}weight"), Tensor):
            self.weight.data = torch.empty_like(dense, device=self.weight.device)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *arguments)

    def is_frozen_for(self, x: Tensor) -> bool:
        """Whether gradients go through the layer to ``x``, and none to its weight."""
        return torch.is_grad_enabled() and x.requires_grad and self.weight.is_constant

    def product(self, x: Tensor) -> Tensor:
        """The outputs of the layer, bias included."""
        raise NotImplementedError

    def input_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient of inputs of the given shape from the gradient of the outputs."""
        raise NotImplementedError

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of the bias ``[R]`` from the gradient of the outputs."""
        raise NotImplementedError


class FrozenProduct(torch.autograd.Function):
    """The outputs of a layer whose weight is frozen, for adapters that are trained around it.

    Autograd would keep the decoded weight of every layer until the backward pass; here that pass
    decodes it again.
    """

    @classmethod
    def run(cls, x: Tensor, bias: Tensor | None, layer: PQLayer) -> Tensor:
        """The outputs of ``layer``, whose bias is given so that it can be trained."""
        out: Tensor = cls.apply(x, bias, layer)  # type: ignore[no-untyped-call]
        return out

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: PQLayer) -> Tensor:
        """The outputs, computed as without gradients."""
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        out: Tensor = layer.weight(layer.product, x)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Gradients of the inputs and of the bias."""
        layer: PQLayer = ctx.layer
        inputs = layer.weight(layer.input_gradient, gradient, ctx.shape).to(ctx.dtype)
        bias = layer.bias_gradient(gradient) if ctx.needs_input_grad[1] else None
        return inputs, bias, None
