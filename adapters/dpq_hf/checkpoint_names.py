"""The parameters of a transformers model that the tensors of its checkpoint become.

transformers renames tensors while it loads them, and makes some parameters of several tensors: the
weights of all experts of a layer become one parameter. This room asks transformers' own tables, so
that dpq reads every checkpoint as ``from_pretrained`` does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpq_core.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

SLICE = re.compile(r"(.+)\.(\d+)")
"""Name of one slice along the first axis, where the checkpoint has one tensor for all of them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The parameter that a tensor of a checkpoint becomes, or becomes a part of.

    Attributes:
        parameter: its name in the model, or the first one where a tensor becomes several.
        pattern: key of the conversion that makes the parameter; None where the tensor is
            renamed at most.
        tensor: name of the tensor in the checkpoint of transformers: ``NAME`` where dpq calls its
            slices along the first axis ``NAME.0``, ``NAME.1``, ...
        index: number of the slice; None for a whole tensor.
    """

    parameter: str
    pattern: str | None
    tensor: str
    index: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is the parameter, under this name or another."""
        return self.pattern is None and self.index is None


@dataclass(kw_only=True)
class Assembly:
    """The tensors of a checkpoint that transformers makes one parameter, or several, of.

    Attributes:
        parameter: name of the (first) parameter.
        places: name of every tensor as dpq stores it -> its place, in the order of transformers.
        converter: of transformers; None where slices are only joined.
    """

    parameter: str
    places: dict[str, Place] = field(default_factory=dict)
    converter: WeightConverter | None = None

    def join(
        self,
        model: PreTrainedModel,
        read: Callable[[str], Tensor],
        transposed: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """The parameters made of these tensors: name in the model -> value.

        Args:
            model: the model that they belong to.
            read: the value of a tensor by the name under which dpq stores it.
            transposed: names of the matrices that dpq stores transposed.

        Raises:
            SourceError: the tensors do not fit together.
        """
        slices: dict[str, list[Tensor]] = {}
        for name, place in self.places.items():
            value = read(name).T if name in transposed else read(name)
            slices.setdefault(place.tensor, []).append(value)
        whole = {
            name: torch.stack(values) if self._is_sliced(name) else values[0]
            for name, values in slices.items()
        }
        if self.converter is None:
            return {self.parameter: whole.popitem()[1]}
        converter = copy.deepcopy(self.converter)
        patterns = {place.tensor: place.pattern or "" for place in self.places.values()}
        for name, value in whole.items():
            loaded: Any = value  # the loader gives a Future
            converter.add_tensor(self.parameter, name, patterns[name], loaded)
        try:
            made: Mapping[str, Any] = converter.convert(
                self.parameter, model=model, config=model.config
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise SourceError(
                f"{self.parameter!r} cannot be made of its tensors ({reason})"
            ) from None
        return {name: v[0] if isinstance(v, list) else v for name, v in made.items()}

    def _is_sliced(self, tensor: str) -> bool:
        return any(p.tensor == tensor and p.index is not None for p in self.places.values())


class CheckpointNames:
    """The places of a checkpoint's tensors in a model of transformers."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take note of the model's parameters and of transformers' conversions for it.

        Args:
            model: on any device, before its modules are replaced.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(value.shape) for name, value in model.state_dict().items()
        }
        transforms = get_model_conversion_mapping(model)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._places: dict[str, Place | None] = {}

    def place(self, name: str) -> Place | None:
        """The place of a tensor of the checkpoint; None where the model has none for it."""
        if name not in self._places:
            self._places[name] = self._find(name)
        return self._places[name]

    def _find(self, name: str) -> Place | None:
        if place := self._whole(name):
            return place
        if match := SLICE.fullmatch(name):
            place = self._whole(match[1])
            if place is not None:
                return Place(
                    parameter=place.parameter,
                    pattern=place.pattern,
                    tensor=match[1],
                    index=int(match[2]),
                )
        return None

    def is_whole(self, name: str) -> bool:
        """Whether a tensor of the checkpoint is a parameter, under this name or another."""
        place = self.place(name)
        return place is not None and place.is_whole

    def _whole(self, name: str) -> Place | None:
        """The place of a tensor that is no slice, found as the loader of transformers finds it."""
        from transformers.core_model_loading import rename_source_key

        renamed, pattern = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self.shapes
        )
        if renamed not in self.shapes and name in self.shapes:
            renamed, pattern = rename_source_key(name, [], [], self._prefix, self.shapes)
        if renamed not in self.shapes:
            return None
        return Place(parameter=renamed, pattern=pattern, tensor=name)

    def assemblies(self, names: Iterable[str]) -> dict[str, Assembly]:
        """The assemblies of all tensors that are not parameters themselves, by parameter."""
        from transformers.core_model_loading import dot_natural_key

        by_pattern = {p: c for c in self._converters for p in c.source_patterns}
        assemblies: dict[str, Assembly] = {}
        for name in sorted(names, key=dot_natural_key):
            place = self.place(name)
            if place is None or place.is_whole:
                continue
            converter = None if place.pattern is None else by_pattern[place.pattern]
            assembly = assemblies.setdefault(
                place.parameter, Assembly(parameter=place.parameter, converter=converter)
            )
            assembly.places[name] = place
        return assemblies
