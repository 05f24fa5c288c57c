"""The files that dpq generates beside the weights: configs and the model card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dpq_diffusion.folders import CONFIG, Component
from dpq_diffusion.hub.registration import MARK
from dpq_hf.model_card import model_card
from dpq_hf.stored_config import config_of_manifest

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest
    from dpq_diffusion.source.checkpoint import DiffusionCheckpoint

METHOD = "dpq"
"""``quant_method`` of a component that diffusers loads."""

TEXT_METHOD = "dpq_component"
"""``quant_method`` of a component that transformers loads (another adapter's is called "dpq")."""


def generated_files(checkpoint: DiffusionCheckpoint, manifest: Manifest) -> dict[str, bytes]:
    """``config.json`` of every compressed component, and ``README.md``."""
    files = {"README.md": _model_card(checkpoint, manifest).encode()}
    for name, part in checkpoint.components.items():
        config = component_config(part, checkpoint.shared[name], manifest, name)
        path = f"{name}/{CONFIG}" if name else CONFIG
        files[path] = (json.dumps(config, indent=2) + "\n").encode()
    return files


def component_config(
    part: Component, shared: dict[str, str], manifest: Manifest, name: str
) -> dict[str, Any]:
    """The source's config with what the loader of its library needs."""
    config = dict(part.config)
    if "_class_name" in config:
        config["quantization_config"] = {
            "quant_method": METHOD,
            **config_of_manifest(manifest, name),
            "shared": shared,
        }
        return config
    config = MARK.add_to_json(config)
    prefix = f"{name}/" if name else ""
    stored = next(entry.dtype for entry in manifest.tensors if entry.name.startswith(prefix))
    dtype = config.get("dtype") or config.get("torch_dtype") or stored
    config["dtype"] = dtype
    config["quantization_config"] = {
        "quant_method": TEXT_METHOD,
        **config_of_manifest(manifest, name),
        "dtype": dtype,
    }
    return config


def _model_card(checkpoint: DiffusionCheckpoint, manifest: Manifest) -> str:
    names = ", ".join(name for name in checkpoint.components if name)
    component = checkpoint.components.get("")
    loader = "DiffusionPipeline" if component is None else str(component.config["_class_name"])
    return model_card(
        checkpoint,
        manifest,
        package="dpq_diffusion",
        sentence=f"This is {manifest.source} with {f'its {names}' if names else 'this component'} "
        "product-quantized by dpq.",
        example=f"""\
from diffusers import {loader}

model = {loader}.from_pretrained("PATH-OR-ID")""",
        row="compressed",
        counted=""" Components
that are not compressed are copied and not in the table. Modules that are copies of one another,
such as the timestep embeddings of a DiT, are stored and counted once.""",
    )
