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
        folder=checkpoint.folder,
        package="dpq_diffusion",
        library="diffusers",
        task=_task(checkpoint),
        sentence=f"This is {manifest.source} with {f'its {names}' if names else 'this component'} "
        "product-quantized by dpq.",
        example=f"""\
from diffusers import {loader}

model = {loader}.from_pretrained("PATH-OR-ID")""",
        more=_USES.format(denoiser=_denoiser(checkpoint)),
        row="compressed",
        counted=""" Components
that are not compressed are copied and not in the table. Modules that are copies of one another,
such as the timestep embeddings of a DiT, are stored and counted once.""",
    )


_USES = """\
## Run

```bash
dpq sample PATH-OR-ID --output images
```

Language models are served by `dpq serve`; an image model runs in your own program, as above.

## Train

LoRA of peft trains around the codes, which stay as they are.

```python
from peft import LoraConfig, inject_adapter_in_model

lora = LoraConfig(target_modules=["to_q", "to_k", "to_v"])
inject_adapter_in_model(lora, {denoiser})
```

"""
"""Sections of the card on how to run and train a diffusion model."""


def _denoiser(checkpoint: DiffusionCheckpoint) -> str:
    """The expression of the denoiser of a loaded pipeline, or of the loaded component."""
    names = [name for name in ("transformer", "unet") if name in checkpoint.components]
    return f"model.{names[0]}" if names else "model"


def _task(checkpoint: DiffusionCheckpoint) -> str:
    """The hub's name for what the pipeline does."""
    return (
        "text-to-image"
        if (checkpoint.folder / "tokenizer").is_dir()
        else "unconditional-image-generation"
    )
