"""Conv1D of transformers and the Linear that computes the same from the transposed weight."""

from __future__ import annotations

# Only modules that need transformers import this one: TID253.
from torch import nn
from transformers.pytorch_utils import Conv1D  # noqa: TID253

from dpq_core.errors import ArtifactError
from dpq_core.runtime.swap import set_module


def to_linear(model: nn.Module, path: str) -> nn.Linear:
    """Replace the Conv1D at ``path``, weight ``[inputs, outputs]``, by a Linear.

    Raises:
        ArtifactError: there is no Conv1D.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if not isinstance(module, Conv1D):
        raise ArtifactError(f"the model has no Conv1D {path!r}, whose weight is stored transposed")
    weight = module.weight
    linear = nn.Linear(module.nx, module.nf, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
    linear.bias = module.bias
    set_module(model, path, linear)
    return linear


def to_conv1d(model: nn.Module, path: str) -> None:
    """Replace the Linear at ``path`` by a Conv1D: undo ``to_linear``."""
    linear = model.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    module = Conv1D(0, 0)  # type: ignore[no-untyped-call]
    module.nf, module.nx = linear.out_features, linear.in_features
    weight = linear.weight
    module.weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
    module.bias = linear.bias
    set_module(model, path, module)


def conv1d_paths(model: nn.Module) -> list[str]:
    """Paths of all Conv1D of a model."""
    return [path for path, module in model.named_modules() if isinstance(module, Conv1D)]
