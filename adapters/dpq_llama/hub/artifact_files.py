"""The files that dpq generates beside the weights: config, model card, loader stub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dpq_hf.stored_config import describe
from dpq_llama.hub.registration import marked
from dpq_llama.source.checkpoint import CONFIG, LlamaCheckpoint

if TYPE_CHECKING:
    from dpq_core.artifact import Manifest

STUB = "modeling_dpq.py"

_STUB_TEXT = b'''\
"""Loads this model with trust_remote_code=True; ``pip install dpq[llama]`` provides dpq_llama.

Without trust_remote_code, write ``import dpq_llama`` before ``from_pretrained`` instead.
"""

import dpq_llama  # registers the quantizer "dpq"
from transformers import LlamaForCausalLM


class DPQLlamaForCausalLM(LlamaForCausalLM):
    pass
'''


def generated_files(checkpoint: LlamaCheckpoint, manifest: Manifest) -> dict[str, bytes]:
    """``config.json``, ``README.md`` and the loader stub of an artifact."""
    config = artifact_config(checkpoint, manifest)
    return {
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        "README.md": model_card(checkpoint, manifest).encode(),
        STUB: _STUB_TEXT,
    }


def artifact_config(checkpoint: LlamaCheckpoint, manifest: Manifest) -> dict[str, Any]:
    """The source's config with what the loader needs.

    ``hidden_act`` carries the mark that makes every loader without dpq_llama fail (see
    ``registration``). ``specs`` and ``tensors`` let a model that transformers saved again, without
    the manifest, load too.
    """
    config = dict(checkpoint.config)
    config["hidden_act"] = marked(config.get("hidden_act", "silu"))
    stored = next(iter(checkpoint.tensors.values())).dtype
    dtype = config.get("dtype") or config.get("torch_dtype") or str(stored).removeprefix("torch.")
    config["dtype"] = dtype
    config["auto_map"] = {"AutoModelForCausalLM": f"{STUB.removesuffix('.py')}.DPQLlamaForCausalLM"}
    config["quantization_config"] = {
        "quant_method": "dpq",
        **describe(manifest),
        "dtype": dtype,
    }
    return config


def model_card(checkpoint: LlamaCheckpoint, manifest: Manifest) -> str:
    """A README whose first line is what every user has to know."""
    before = sum(info.nbytes for info in checkpoint.tensors.values())
    weights = sum(info.numel for info in checkpoint.tensors.values())
    after = manifest.stored_nbytes
    rows = "\n".join(
        f"| {spec.d} | {spec.K} | {sum(1 for t in manifest.tensors if t.spec == index)} |"
        for index, spec in enumerate(manifest.specs)
    )
    return f"""\
# `import dpq_llama` first

This is {manifest.source}, product-quantized by dpq. Without that import transformers refuses it.

```python
import dpq_llama  # pip install "dpq[llama]"
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH-OR-ID")
tokenizer = AutoTokenizer.from_pretrained("PATH-OR-ID")
```

| | bytes of tensors | bits per weight |
|---|---|---|
| source | {before:,} | {8 * before / weights:.3f} |
| this model | {after:,} | {8 * after / weights:.3f} |

Everything stored is counted: codes, codebooks, scales and what was left uncompressed.

| subvector length d | codewords K | tensors |
|---|---|---|
{rows}

Check the files and the loaded model with `dpq inspect --verify`. The licence of the original model
applies.
"""
