"""The files that dpq generates beside the weights: configs and the model card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dpq_diffusion.folders import CONFIG, Component
from dpq_diffusion.hub.text_guard import guarded
from dpq_hf.stored_config import describe

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest
    from dpq_diffusion.source.checkpoint import DiffusionCheckpoint

METHOD = "dpq"
"""``quant_method`` of a component that diffusers loads."""

TEXT_METHOD = "dpq_component"
"""``quant_method`` of a component that transformers loads (another adapter's is called "dpq")."""


def generated_files(checkpoint: DiffusionCheckpoint, manifest: Manifest) -> dict[str, bytes]:
    """``config.json`` of every compressed component, and ``README.md``."""
    files = {"README.md": model_card(checkpoint, manifest).encode()}
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
            **describe(manifest, name),
            "shared": shared,
        }
        return config
    config = guarded(config)
    prefix = f"{name}/" if name else ""
    stored = next(entry.dtype for entry in manifest.tensors if entry.name.startswith(prefix))
    dtype = config.get("dtype") or config.get("torch_dtype") or stored
    config["dtype"] = dtype
    config["quantization_config"] = {
        "quant_method": TEXT_METHOD,
        **describe(manifest, name),
        "dtype": dtype,
    }
    return config


def model_card(checkpoint: DiffusionCheckpoint, manifest: Manifest) -> str:
    """A README whose first line is what every user has to know."""
    before = sum(info.nbytes for info in checkpoint.tensors.values())
    weights = sum(info.numel for info in checkpoint.tensors.values())
    after = manifest.stored_nbytes
    names = ", ".join(name for name in checkpoint.components if name)
    what = f"its {names}" if names else "this component"
    bare = checkpoint.components.get("")
    loader = "DiffusionPipeline" if bare is None else str(bare.config["_class_name"])
    rows = "\n".join(
        f"| {spec.d} | {spec.K} | {sum(1 for t in manifest.tensors if t.spec == index)} |"
        for index, spec in enumerate(manifest.specs)
    )
    return f"""\
# `import dpq_diffusion` first

This is {manifest.source} with {what} product-quantized by dpq.

```python
import dpq_diffusion  # pip install "dpq[diffusion]"
from diffusers import {loader}

model = {loader}.from_pretrained("PATH-OR-ID")
```

| | bytes of tensors | bits per weight |
|---|---|---|
| source | {before:,} | {8 * before / weights:.3f} |
| compressed | {after:,} | {8 * after / weights:.3f} |

Everything stored is counted: codes, codebooks, scales and what was left uncompressed. Components
that are not compressed are copied and not in the table. Modules that are copies of one another,
such as the timestep embeddings of a DiT, are stored and counted once.

| subvector length d | codewords K | tensors |
|---|---|---|
{rows}

Check the files and the loaded model with `dpq inspect --verify`. The licence of the original model
applies.
"""
