"""The part of a library's ``quantization_config`` that says which weight has which spec.

Libraries load a model by its ``config.json`` alone, without our manifest; so it repeats what a
loader has to know to build the quantized modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpq_core.errors import ArtifactError, SpecError
from dpq_core.spec import QuantSpec

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest

CONFIG_VERSION = 1
"""Version of ``quantization_config``; raised when the meaning of a key changes."""


def describe(manifest: Manifest, component: str = "") -> dict[str, Any]:
    """``version``, ``specs`` (as ``QuantSpec.to_json``) and ``tensors`` (name -> index into them).

    Args:
        manifest: of the artifact.
        component: whose tensors are meant; their names are given without it.
    """
    prefix = f"{component}/" if component else ""
    chosen = {
        entry.name.removeprefix(prefix): manifest.specs[entry.spec]
        for entry in manifest.tensors
        if entry.spec is not None and entry.name.startswith(prefix)
    }
    specs = list(dict.fromkeys(chosen.values()))
    return {
        "version": CONFIG_VERSION,
        "specs": [spec.to_json() for spec in specs],
        "tensors": {name: specs.index(spec) for name, spec in chosen.items()},
    }


def check_keys(version: object, unknown: Mapping[str, Any]) -> None:
    """Refuse a config that a newer dpq has written.

    Raises:
        ArtifactError: another version, or keys that are not known.
    """
    if version != CONFIG_VERSION:
        raise ArtifactError(
            f"quantization_config version {version!r} is not known; this dpq reads "
            f"{CONFIG_VERSION}: update dpq"
        )
    if unknown:
        raise ArtifactError(f"quantization_config: unknown key {sorted(unknown)[0]!r}")


def spec_of(specs: list[dict[str, Any]], tensors: dict[str, int]) -> dict[str, QuantSpec]:
    """The spec of every quantized weight.

    Raises:
        ArtifactError: a spec or an index is not valid.
    """
    try:
        parsed = [QuantSpec.from_json(spec) for spec in specs]
        indices = {name: int(index) for name, index in tensors.items()}
        if not all(0 <= index < len(parsed) for index in indices.values()):
            raise ValueError("a tensor's spec index is out of range")
    except (AttributeError, TypeError, ValueError, SpecError) as error:
        raise ArtifactError(f"quantization_config is damaged: {error}") from None
    return {name: parsed[index] for name, index in indices.items()}
