"""Calls of a denoiser, split into tensors per sample and made again from batches of these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpq_core.data.sequential.activations import Unstorable, flatten, unflatten
from dpq_core.errors import SourceError

_SHARED_ARGUMENTS = ("img_ids", "txt_ids")
"""Arguments of FLUX and its kin that all samples share; their first axis counts tokens."""


@dataclass(frozen=True, kw_only=True)
class CallTemplate:
    """The arguments that all calls of a denoiser share, with slots for those that differ.

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
        """The output ``[n, ...]`` of a model for a batch of slots (``slot_key``).

        Everything moves to the model's device; floating tensors take its dtype.
        """
        from dpq_diffusion.pipelines.denoising import activation_dtype

        dtype, device = activation_dtype(model), next(model.parameters()).device
        slots = {int(name[len(_KEY) :]) for name in batch if name.startswith(_KEY)}
        count = len(slots) + len(self.shared)
        tensors = [self.shared[i] if i in self.shared else batch[slot_key(i)] for i in range(count)]
        moved = [t.to(device, dtype if t.is_floating_point() else t.dtype) for t in tensors]
        output: Tensor = model(**unflatten(self.structure, moved), return_dict=False)[0]
        return output


_KEY = "input"


def slot_key(slot: int) -> str:
    """The name under which a batch holds the tensor of a slot."""
    return f"{_KEY}{slot}"


def sample_name(model: nn.Module) -> str:
    """The name of a denoiser's argument for noisy latents: the first one, in all of diffusers."""
    return next(iter(inspect.signature(model.forward).parameters))


def split_call(arguments: Mapping[str, Any], sample: str) -> tuple[CallTemplate, dict[int, Tensor]]:
    """Split the arguments of a call into a template and the tensors ``[n, ...]`` of its slots.

    Args:
        arguments: the arguments of a call by name, ``timestep`` among them.
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
    places = {slots[name] for name in _SHARED_ARGUMENTS if name in slots}
    shared, own = {}, {}
    for i, tensor in enumerate(tensors):
        if i == slots["timestep"] and (tensor.ndim == 0 or len(tensor) == 1):
            own[i] = tensor.reshape(1).expand(count)
        elif i in places or tensor.ndim == 0 or len(tensor) != count:
            shared[i] = tensor
        else:
            own[i] = tensor
    form = CallTemplate(
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
    """A context manager that keeps the calls of a denoiser, on the CPU.

    Attributes:
        model: the denoiser.
        is_kept: (number of the call from 0, bytes of its latents and output) -> whether to keep it.
        form: template of all calls; None before the first one.
        calls: the calls that were kept.
    """

    model: nn.Module
    is_kept: Callable[[int, int], bool]
    form: CallTemplate | None = None
    calls: list[Call] = field(default_factory=list)
    _number: int = 0
    _copies: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __enter__(self) -> Recorder:
        """Record every call from now on."""
        self._handle = self.model.register_forward_hook(self._called, with_kwargs=True)
        self._signature = inspect.signature(self.model.forward)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop recording, and let go of the pipeline's tensors."""
        self._handle.remove()
        self._copies.clear()

    def _called(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        arguments.pop("return_dict", None)
        sample, answer = arguments[sample_name(self.model)], output[0].detach()
        number, self._number = self._number, self._number + 1
        if not self.is_kept(number, _nbytes(sample) + _nbytes(answer)):
            return
        form, inputs = split_call(arguments, sample_name(self.model))
        if self.form is None:
            shared = {i: t.detach().cpu().clone() for i, t in form.shared.items()}
            self.form = CallTemplate(
                structure=form.structure, shared=shared, sample=form.sample, timestep=form.timestep
            )
        if form.structure != self.form.structure or form.shared.keys() != self.form.shared.keys():
            raise SourceError("calibrate: the pipeline calls its denoiser in more than one way")
        kept = {i: self._copied(tensor) for i, tensor in inputs.items() if i != form.sample}
        kept[form.sample] = sample.detach().cpu().clone()
        self.calls.append(Call(inputs=kept, output=answer.cpu().clone()))

    def _copied(self, tensor: Tensor) -> Tensor:
        """A copy on the CPU, made once per tensor: conditions are the same one at every step."""
        pair = self._copies.get(id(tensor))
        if pair is None:
            pair = tensor, tensor.detach().cpu().clone()
            self._copies[id(tensor)] = pair  # with the tensor itself: its id stays taken
        return pair[1]


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def gather_batch(calls: list[Call], picks: list[tuple[int, int]]) -> dict[str, Tensor]:
    """The batch of rows of recorded calls, with their outputs as ``target``.

    Args:
        calls: recorded calls of one template.
        picks: number of a call and of a row in it, for each sample of the batch.
    """
    chosen = [(calls[number], row) for number, row in picks]
    batch = {
        slot_key(slot): torch.stack([call.inputs[slot][row] for call, row in chosen])
        for slot in chosen[0][0].inputs
    }
    target = torch.stack([call.output[row] for call, row in chosen]).float()
    return {**batch, "target": target}
