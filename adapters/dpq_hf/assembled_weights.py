"""Quantized tensors that transformers joins or splits while it loads, decoded by dpq itself.

No quantized module stands for such a parameter (the weights of all experts of a layer, stored one
by one), so it becomes dense when the model is loaded. It leaves the model before the library reads
the files, and comes back with its values afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dpq_core.errors import ArtifactError, SourceError, SpecError
from dpq_core.runtime import PQWeight, swap
from dpq_core.spec import QuantSpec
from dpq_core.tensor.checkpoint import SafetensorsCheckpoint
from dpq_core.tensor.partition import Layout, Partition
from dpq_core.tensor.pq_tensor import PQTensor
from dpq_hf.checkpoint_names import Assembly, CheckpointNames

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HIDDEN = "dpq_hidden"
"""The name by which the library meets all tensors that are not for it."""


class AssembledWeights:
    """The parameters of a model that are made of quantized tensors by a conversion.

    Attributes:
        names: names of the quantized tensors, as the config has them.
        tensors: these, and the dense ones beside which they make a parameter.
    """

    def __init__(
        self,
        names: CheckpointNames,
        spec_of: Mapping[str, QuantSpec],
        shapes: Mapping[str, Sequence[int]],
        transposed: Collection[str],
        files: Sequence[Path],
    ) -> None:
        """Find the parameters, and check the headers of the weight files; nothing is read.

        Args:
            names: of the model's checkpoint.
            spec_of: spec of every quantized tensor that is no parameter of its own.
            shapes: shapes of these tensors.
            transposed: names of the tensors that are stored transposed.
            files: all weight files of an artifact; none for another model.

        Raises:
            ArtifactError: a file is unreadable, or a part is missing, or of another shape or dtype.
        """
        self.names = self.tensors = frozenset(spec_of)
        self._dense: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._assemblies: list[Assembly] = []
        self._transposed = frozenset(transposed)
        if not (files or spec_of):
            return
        self._weights = {
            name: PQWeight(_partition(name, spec, shapes), spec, device="meta")
            for name, spec in spec_of.items()
        }
        swap.check_files(self._weights, files)
        self._files = SafetensorsCheckpoint("artifact", list(files))
        parts = {key for name in spec_of for key in self._keys(name)}
        names_in_files = self._files.tensors.keys() - parts | self.names
        for assembly in names.assemblies(names_in_files).values():
            sliced = any(place.index is not None for place in assembly.places.values())
            if sliced or self.names & assembly.places.keys():
                self._assemblies.append(assembly)
                self.tensors |= assembly.places.keys()

    def take_out(self, model: PreTrainedModel) -> None:
        """Take the parameters out of a model on the meta device.

        Raises:
            ArtifactError: the model has no such parameter.
        """
        if self._assemblies:
            ignored = model._keys_to_ignore_on_load_unexpected or ()
            model._keys_to_ignore_on_load_unexpected = {*ignored, f"^{_HIDDEN}$"}
        for assembly in self._assemblies:
            for name, value in self._join(model, assembly, meta=True).items():
                path, _, leaf = name.rpartition(".")
                try:
                    module, parameter = model.get_submodule(path), model.get_parameter(name)
                except AttributeError:
                    raise ArtifactError(f"the model has no parameter {name!r}") from None
                if value.shape != parameter.shape:
                    raise ArtifactError(
                        f"tensor {name!r} is {list(value.shape)}, the config asks for "
                        f"{list(parameter.shape)}"
                    )
                self._dense[name] = (parameter.shape, parameter.dtype)
                del module._parameters[leaf]
                module._is_hf_initialized = True  # type: ignore[assignment]  # transformers' flag

    def hide(self, conversions: list[Any]) -> list[Any]:
        """The library's conversions, with one before them that hides the quantized tensors."""
        if not self._assemblies:
            return conversions
        from dpq_hf.hidden_tensors import HiddenTensors

        keys = [key for name in self.tensors for key in self._keys(name)]
        return [HiddenTensors(keys, _HIDDEN), *conversions]

    def _keys(self, name: str) -> list[str]:
        """Names in the weight files of a tensor, or of its parts."""
        weight = self._weights.get(name)
        return [name] if weight is None else [f"{name}.{part}" for part in weight.parts()]

    @torch.no_grad()
    def put_back(self, model: PreTrainedModel) -> None:
        """Decode the tensors, and give the model its parameters back.

        Raises:
            ArtifactError: a tensor is damaged, or its neighbours are not in memory.
        """
        for assembly in self._assemblies:
            for name, value in self._join(model, assembly, meta=False).items():
                path, _, leaf = name.rpartition(".")
                dense = value.to(_device_near(model, path), self._dense[name][1])
                setattr(model.get_submodule(path), leaf, nn.Parameter(dense.contiguous(), False))

    def _join(self, model: PreTrainedModel, assembly: Assembly, *, meta: bool) -> dict[str, Tensor]:
        def read(name: str) -> Tensor:
            weight = self._weights.get(name)
            if meta:
                shape = (
                    self._files.tensors[name].shape if weight is None else weight.partition.shape
                )
                return torch.empty(shape, device="meta")
            if weight is None:
                return self._files.read(name).float()
            parts = {key.rpartition(".")[2]: self._files.read(key) for key in self._keys(name)}
            try:
                pq = PQTensor.from_parts(weight.partition, weight.spec, torch.float32, parts)
            except ArtifactError as error:
                raise ArtifactError(f"{name!r}: {error}") from None
            return pq.decode()

        try:
            return assembly.join(model, read, self._transposed)
        except SourceError as error:
            raise ArtifactError(str(error)) from None


def _partition(name: str, spec: QuantSpec, shapes: Mapping[str, Sequence[int]]) -> Partition:
    try:
        return Partition.of(tuple(shapes[name]), Layout.LINEAR, spec)
    except KeyError:
        raise ArtifactError(f"quantization_config has no shape of {name!r}") from None
    except SpecError as error:
        raise ArtifactError(f"{name!r}: {error}") from None


def _device_near(model: PreTrainedModel, path: str) -> torch.device:
    """The device of the parameters around a module.

    Raises:
        ArtifactError: they are offloaded.
    """
    while True:
        near = next(model.get_submodule(path).parameters(), None)
        if near is not None:
            break
        path = path.rpartition(".")[0]
    if near.device.type == "meta":
        raise ArtifactError(
            f"{path!r} has weights that are decoded while they are loaded, which needs them in "
            "memory: leave them out of the offloaded part of device_map"
        )
    return near.device
