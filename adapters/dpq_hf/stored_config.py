"""``quantization_config``: the part of a ``config.json`` that says which weight has which spec.

Libraries load a model by its ``config.json`` alone, without the manifest of the artifact; so the
config repeats what a loader has to know to build the quantized modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dpq_core.errors import ArtifactError, SpecError
from dpq_core.spec import QuantSpec

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest

CONFIG_VERSION = 1
"""Version of ``quantization_config``; raised when the meaning of a key changes."""


def config_of_manifest(manifest: Manifest, component: str = "") -> dict[str, Any]:
    """``version``, ``specs`` and ``tensors`` of the config of one component of an artifact.

    Args:
        manifest: of the artifact.
        component: whose tensors are meant; their names are given without it.
    """
    prefix = f"{component}/" if component else ""
    spec_of = {
        entry.name.removeprefix(prefix): manifest.specs[entry.spec]
        for entry in manifest.tensors
        if entry.spec is not None and entry.name.startswith(prefix)
    }
    return {"version": CONFIG_VERSION, **_distinct_specs(spec_of)}


def _distinct_specs(spec_of: Mapping[str, QuantSpec]) -> dict[str, Any]:
    """``specs`` (as ``QuantSpec.to_json`` writes them) and ``tensors`` (name -> index in specs)."""
    specs = list(dict.fromkeys(spec_of.values()))
    return {
        "specs": [spec.to_json() for spec in specs],
        "tensors": {name: specs.index(spec) for name, spec in spec_of.items()},
    }


class StoredConfig:
    """A ``quantization_config``, or the wish to quantize a dense model while it is loaded.

    A mixin: the config class of the library comes behind it.

    Attributes:
        version: of the config.
        specs: the distinct specs, as ``QuantSpec.to_json`` writes them.
        tensors: name of a quantized weight -> index into ``specs``.
        shapes: shapes of the quantized weights that are no parameters of their own, because the
            library joins or splits them.
        transposed: names of the matrices that are stored as ``[outputs, inputs]``, although the
            library holds them as ``[inputs, outputs]`` (``Conv1D``, the experts of Llama 4).
        bits: nominal bits per weight by which a dense model is to be quantized while it is loaded;
            None for a model that is quantized already.
    """

    def __init__(
        self,
        *,
        bits: int | None = None,
        specs: list[dict[str, Any]] | None = None,
        tensors: dict[str, int] | None = None,
        shapes: dict[str, list[int]] | None = None,
        transposed: list[str] | None = None,
        version: int = CONFIG_VERSION,
        **unknown: Any,
    ) -> None:
        """Take over the values of a ``config.json``, or ``bits`` alone.

        Raises:
            ArtifactError: the version or a key is not known, or bits and specs are given.
            SpecError: there is no preset of so many bits.
        """
        if version != CONFIG_VERSION:
            raise ArtifactError(
                f"quantization_config version {version!r} is not known; this dpq reads "
                f"{CONFIG_VERSION}: update dpq"
            )
        if unknown:
            raise ArtifactError(f"quantization_config: unknown key {sorted(unknown)[0]!r}")
        if bits is not None:
            QuantSpec.preset(bits)
            if specs or tensors:
                raise ArtifactError(
                    "quantization_config: bits are for a dense model, without specs"
                )
        self.version = version
        self.specs = [] if specs is None else specs
        self.tensors = {} if tensors is None else tensors
        self.shapes = {} if shapes is None else shapes
        self.transposed = [] if transposed is None else transposed
        self.bits = bits

    def spec_of(self) -> dict[str, QuantSpec]:
        """The spec of every quantized weight, by its name.

        Raises:
            ArtifactError: a spec or an index is not valid.
        """
        try:
            specs = [QuantSpec.from_json(spec) for spec in self.specs]
            indices = {name: int(index) for name, index in self.tensors.items()}
            if not all(0 <= index < len(specs) for index in indices.values()):
                raise ValueError("a tensor's spec index is out of range")
            if not all(type(n) is int and n >= 0 for axes in self.shapes.values() for n in axes):
                raise ValueError("a shape is not of whole numbers")
            if not all(isinstance(name, str) for name in self.transposed):
                raise ValueError("transposed is not a list of names")
        except (AttributeError, TypeError, ValueError, SpecError) as error:
            raise ArtifactError(f"quantization_config is damaged: {error}") from None
        return {name: specs[index] for name, index in indices.items()}

    def forget(self, name: str) -> None:
        """Leave out a weight that has become dense."""
        self.tensors.pop(name, None)
        self.shapes.pop(name, None)
        self.transposed = [other for other in self.transposed if other != name]

    def describe(self, spec_of: Mapping[str, QuantSpec]) -> None:
        """Make this the config of a model whose weights have been quantized by these specs."""
        config = _distinct_specs(spec_of)
        self.specs, self.tensors, self.bits = config["specs"], config["tensors"], None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for ``config.json``."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[misc]  # of the library's class
        unset: tuple[tuple[str, Any], ...] = (("bits", None), ("shapes", {}), ("transposed", []))
        return {key: value for key, value in values.items() if (key, value) not in unset}


class DtypeConfig(StoredConfig):
    """A config that also holds the dtype of the uncompressed model, under torch's name for it."""

    def __init__(self, *, dtype: str | None = None, **values: Any) -> None:
        """Take over the values of a ``config.json``, or ``bits`` alone.

        Raises:
            ArtifactError: a value is not known.
            SpecError: there is no preset of so many bits.
        """
        super().__init__(**values)
        self.dtype = dtype
        says_nothing = dtype is None and not self.tensors  # given at load, beside the model's own
        known = isinstance(getattr(torch, str(dtype), None), torch.dtype)
        if self.bits is None and not known and not says_nothing:
            raise ArtifactError(f"quantization_config: unknown dtype {dtype!r}")
