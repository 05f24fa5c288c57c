"""How a denoiser is called: taken apart into a batch, and put together again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.data.sequential.activations import Unstorable, flatten, unflatten
from dpq_core.errors import SourceError

_PLACES = ("img_ids", "txt_ids")
"""Arguments of FLUX and its kin whose first axis counts tokens: all samples share them."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The arguments of a denoiser, without those that differ between samples.

    Attributes:
        structure: arguments by name, numbered slots in place of tensors.
        shared: slot -> tensor that all samples have in common.
        sample: slot of the noisy latents.
        timestep: slot of the timestep.
    """

    structure: Any
    shared: Mapping[int, Tensor]
    sample: int
    timestep: int

    def call(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Output ``[n, ...]`` of a model for a batch, which has the tensor of slot i as ``key(i)``.

        Everything moves to the model's device; floating tensors take its dtype.
        """
        from dpq_diffusion.pipelines.denoising import activation_dtype

        dtype, device = activation_dtype(model), next(model.parameters()).device
        slots = {int(name[len(_KEY) :]) for name in batch if name.startswith(_KEY)}
        count = len(slots) + len(self.shared)
        tensors = [self.shared[i] if i in self.shared else batch[key(i)] for i in range(count)]
        moved = [t.to(device, dtype if t.is_floating_point() else t.dtype) for t in tensors]
        output: Tensor = model(**unflatten(self.structure, moved), return_dict=False)[0]
        return output


_KEY = "input"


def key(slot: int) -> str:
    """Name in a batch of the tensor of a slot."""
    return f"{_KEY}{slot}"


def sample_name(model: nn.Module) -> str:
    """Name of the argument that takes the noisy latents: the first one, in all of diffusers."""
    return next(iter(inspect.signature(model.forward).parameters))


def take_apart(arguments: Mapping[str, Any], sample: str) -> tuple[Form, dict[int, Tensor]]:
    """Form and slots ``[n, ...]`` of a call.

    Args:
        arguments: by name, ``timestep`` among them.
        sample: name of the argument with the noisy latents ``[n, ...]``.

    Raises:
        SourceError: an argument is neither a tensor nor a plain value.
    """
    tensors: list[Tensor] = []
    try:
        structure = flatten(dict(arguments), tensors)
    except Unstorable as error:
        raise SourceError(
            f"calibrate: the pipeline hands its denoiser a {error}, which cannot be kept"
        ) from None
    slots = {name: structure[name].index for name in arguments if _is_slot(arguments[name])}
    count = len(tensors[slots[sample]])
    places = {slots[name] for name in _PLACES if name in slots}
    shared, own = {}, {}
    for i, tensor in enumerate(tensors):
        if i == slots["timestep"] and (tensor.ndim == 0 or len(tensor) == 1):
            own[i] = tensor.reshape(1).expand(count)
        elif i in places or tensor.ndim == 0 or len(tensor) != count:
            shared[i] = tensor
        else:
            own[i] = tensor
    form = Form(
        structure=structure, shared=shared, sample=slots[sample], timestep=slots["timestep"]
    )
    return form, own


def _is_slot(value: Any) -> bool:
    return isinstance(value, Tensor)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a denoiser.

    Attributes:
        inputs: slot -> ``[n, ...]``.
        output: ``[n, ...]``.
    """

    inputs: Mapping[int, Tensor]
    output: Tensor


@dataclass
class Recorder:
    """Keeps the calls of a denoiser while it is entered, on the CPU.

    Attributes:
        model: the denoiser.
        wanted: (number of the call from 0, bytes of its latents and output) -> whether to keep it.
        form: of all calls; None before the first one.
        calls: that were kept.
    """

    model: nn.Module
    wanted: Callable[[int, int], bool]
    form: Form | None = None
    calls: list[Call] = field(default_factory=list)
    _number: int = 0
    _known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __enter__(self) -> Recorder:
        """Look at every call from now on."""
        self._handle = self.model.register_forward_hook(self._called, with_kwargs=True)
        self._signature = inspect.signature(self.model.forward)
        return self

    def __exit__(self, *_: object) -> None:
        """Look away, and forget which tensors of the pipeline are known."""
        self._handle.remove()
        self._known.clear()

    def _called(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        arguments.pop("return_dict", None)
        sample, answer = arguments[sample_name(self.model)], output[0].detach()
        number, self._number = self._number, self._number + 1
        if not self.wanted(number, _nbytes(sample) + _nbytes(answer)):
            return
        form, inputs = take_apart(arguments, sample_name(self.model))
        if self.form is None:
            shared = {i: t.detach().cpu().clone() for i, t in form.shared.items()}
            self.form = Form(
                structure=form.structure, shared=shared, sample=form.sample, timestep=form.timestep
            )
        if form.structure != self.form.structure or form.shared.keys() != self.form.shared.keys():
            raise SourceError("calibrate: the pipeline calls its denoiser in more than one way")
        kept = {i: self._copied(tensor) for i, tensor in inputs.items() if i != form.sample}
        kept[form.sample] = sample.detach().cpu().clone()
        self.calls.append(Call(inputs=kept, output=answer.cpu().clone()))

    def _copied(self, tensor: Tensor) -> Tensor:
        """A copy, one for all calls with the same tensor: conditions come again at every step."""
        found = self._known.get(id(tensor))
        if found is None:
            found = tensor, tensor.detach().cpu().clone()
            self._known[id(tensor)] = found  # with the tensor itself: its id stays taken
        return found[1]


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def gather(calls: list[Call], picks: list[tuple[int, int]]) -> dict[str, Tensor]:
    """The batch of some (call, row), with the output as ``target``."""
    chosen = [(calls[number], row) for number, row in picks]
    batch = {
        key(slot): torch.stack([call.inputs[slot][row] for call, row in chosen])
        for slot in chosen[0][0].inputs
    }
    target = torch.stack([call.output[row] for call, row in chosen]).float()
    return {**batch, "target": target}
