"""Output heads that share the weight of a token embedding, when modules are replaced and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dpq_core.runtime import PQLinear, PQWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TiedPQLinear(PQLinear):
    """An output head on the quantized weight of the embedding.

    The weight is no submodule of the head: it stays one module with one name in the state dict, so
    that loading, moving and saving treat it once.
    """

    def __init__(self, weight: PQWeight) -> None:
        """Share ``weight`` ``[vocabulary, hidden]`` with the embedding."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = weight.partition.cols, weight.partition.rows
        self.__dict__["weight"] = weight
        weight.serve(self)
        self.bias = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states ``[..., hidden]`` -> logits, computed where the embedding is."""
        return super().forward(x.to(self.weight.device))


def tie_head(model: PreTrainedModel) -> None:
    """Share the embedding's weight with a tied head, in place of tying by parameter name."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        return
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    if not (isinstance(weight, PQWeight) or isinstance(head, PQLinear)):
        return
    tied = _name_of(model, head) in model.all_tied_weights_keys
    if tied and isinstance(weight, PQWeight) and not isinstance(head, PQLinear):
        head = TiedPQLinear(weight)
        model.set_output_embeddings(head)  # type: ignore[no-untyped-call]
    model._tied_weights_keys = {}
    model.all_tied_weights_keys = {}


def _name_of(model: nn.Module, layer: nn.Module) -> str:
    """Name of the weight of a module of ``model``."""
    return next(f"{path}.weight" for path, module in model.named_modules() if module is layer)


def retie_dense_head(model: PreTrainedModel) -> None:
    """Make a tied head an ordinary one again, where its embedding has become dense."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(weight, nn.Parameter):
        return
    if isinstance(head, TiedPQLinear):
        head.become_dense(weight)
    if getattr(head, "weight", None) is weight and not model.all_tied_weights_keys:
        tie_by_name(model)


def tie_by_name(model: PreTrainedModel) -> None:
    """Let the library tie the parameters of a dense head by their names again."""
    model.__dict__.pop("_tied_weights_keys", None)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
